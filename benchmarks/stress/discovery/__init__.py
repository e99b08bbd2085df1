"""Many nodes that find each other by a registry: in this process on a network in memory, and in processes with etcd."""
