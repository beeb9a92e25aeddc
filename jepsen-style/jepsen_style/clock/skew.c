/* A library to be preloaded: the wall clock of this process alone is what a file says, and can change at any time.
 *
 * Only CLOCK_REALTIME and what is read from it; the monotonic clock, on which all waiting is done, is the machine's.
 *
 * The file, in the byte order of the machine; skew.py writes it:
 *   0   which of the two settings counts, 0 or 1 (int64); the other one is being rewritten or rests
 *   8   setting 0: anchor (int64, ns of the real clock), base (int64, ns shown at the anchor), rate (double)
 *   32  setting 1: the same
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

struct setting {
  int64_t anchor_ns;
  int64_t base_ns;
  double rate;
};

struct file {
  int64_t chosen;
  struct setting settings[2];
};

typedef int (*clock_gettime_fn)(clockid_t, struct timespec *);

static const volatile struct file *file;
static clock_gettime_fn real_clock_gettime;

__attribute__((constructor)) static void prepare(void) {
  real_clock_gettime = (clock_gettime_fn)dlsym(RTLD_NEXT, "clock_gettime");
  const char *path = getenv("NOMADPY_KIT_CLOCK");
  if (path == NULL) return;
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  void *mapped = mmap(NULL, sizeof(struct file), PROT_READ, MAP_SHARED, descriptor, 0);
  close(descriptor);
  if (mapped != MAP_FAILED) file = mapped;
}

static void show(struct timespec *moment) {
  int64_t chosen = __atomic_load_n(&file->chosen, __ATOMIC_ACQUIRE) & 1;
  int64_t anchor_ns = file->settings[chosen].anchor_ns;
  int64_t base_ns = file->settings[chosen].base_ns;
  double rate = file->settings[chosen].rate;
  int64_t passed_ns = moment->tv_sec * SECOND + moment->tv_nsec - anchor_ns;
  /* A rate of one must not lose the low digits in a double. */
  int64_t shown_ns = base_ns + (rate == 1.0 ? passed_ns : (int64_t)((double)passed_ns * rate));
  moment->tv_sec = shown_ns / SECOND;
  moment->tv_nsec = shown_ns % SECOND;
}

int clock_gettime(clockid_t clock, struct timespec *moment) {
  /* Another library's constructor may ask before ours has run. */
  if (real_clock_gettime == NULL) real_clock_gettime = (clock_gettime_fn)dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real_clock_gettime(clock, moment);
  if (!failed && file != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) show(moment);
  return failed;
}

int gettimeofday(struct timeval *restrict moment, void *restrict zone) {
  (void)zone;
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  moment->tv_sec = now.tv_sec;
  moment->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *seconds) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (seconds != NULL) *seconds = now.tv_sec;
  return now.tv_sec;
}

int timespec_get(struct timespec *now, int base) {
  if (base != TIME_UTC || clock_gettime(CLOCK_REALTIME, now)) return 0;
  return base;
}
