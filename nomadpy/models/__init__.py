"""Wire structs: the names, kinds and null rules of Nomad's JSON, one module per resource."""
