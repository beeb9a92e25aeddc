# Laid over the built-in development agent: one node that is server and client, for this machine only.
#
#   nomadpy agent -dev -config config/dev.hcl

name = "dev"

ports {
  http = 4646
  rpc  = 4647
}

client {
  meta {
    rack = "r1"
  }

  options {
    "example.option" = "1"
  }
}
