# A node that runs tasks.
#
#   nomadpy agent -config /etc/nomadpy/client.hcl

region     = "global"
datacenter = "dc1"
data_dir   = "/var/lib/nomadpy"
bind_addr  = "0.0.0.0"

client {
  enabled    = true
  node_class = "general"

  server_join {
    retry_join = ["10.0.0.11", "10.0.0.12", "10.0.0.13"]
  }

  # Jobs can ask for these with constraints on ${meta.rack}.
  meta {
    rack = "r1"
    ssd  = "true"
  }

  # What the machine keeps for itself: MHz, MiB, MiB, ports.
  reserved {
    cpu            = 500
    memory         = 512
    disk           = 1024
    reserved_ports = "22"
  }

  # Jobs may mount this directory by its name. Volumes that are made while the agent runs lie in data_dir/host_volumes.
  host_volume "certificates" {
    path      = "/etc/ssl/certs"
    read_only = true
  }

  # Ended allocations are removed when there are more than these, or the disk is fuller than this.
  gc_max_allocs           = 50
  gc_disk_usage_threshold = 80
}

plugin "docker" {
  config {
    allow_privileged = false

    volumes {
      enabled = false
    }

    gc {
      image_delay = "1h"
    }
  }
}

plugin "raw_exec" {
  config {
    enabled = false
  }
}

# Made by: nomadpy tls cert create -client -region global
tls {
  http                = true
  rpc                 = true
  verify_https_client = true
  ca_file             = "/etc/nomadpy/tls/nomad-agent-ca.pem"
  cert_file           = "/etc/nomadpy/tls/global-client-nomad.pem"
  key_file            = "/etc/nomadpy/tls/global-client-nomad-key.pem"
}
