# One of three servers. The other two differ in name and advertise only.
#
#   nomadpy agent -config /etc/nomadpy/server.hcl

name       = "server-1"
region     = "global"
datacenter = "dc1"
data_dir   = "/var/lib/nomadpy"
bind_addr  = "0.0.0.0"

# What other nodes dial. Without this it is the first private address of the machine.
advertise {
  http = "10.0.0.11"
  rpc  = "10.0.0.11"
}

server {
  enabled          = true
  bootstrap_expect = 3

  server_join {
    retry_join = ["10.0.0.11", "10.0.0.12", "10.0.0.13"]
  }

  # Finished work is forgotten after these.
  job_gc_threshold  = "4h"
  node_gc_threshold = "24h"
}

# Made by: nomadpy tls ca create
#          nomadpy tls cert create -server -region global
tls {
  http                = true
  rpc                 = true
  verify_https_client = true
  ca_file             = "/etc/nomadpy/tls/nomad-agent-ca.pem"
  cert_file           = "/etc/nomadpy/tls/global-server-nomad.pem"
  key_file            = "/etc/nomadpy/tls/global-server-nomad-key.pem"
}

# The leader saves the cluster's state here, and keeps the newest. The files hold secrets.
snapshot_agent {
  interval = "1h"
  retain   = 48

  local_storage {
    path = "/var/lib/nomadpy-snapshots"
  }
}

telemetry {
  prometheus_metrics   = true
  publish_node_metrics = true
}
