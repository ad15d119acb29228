"""What jobs run on: this host, or a Kubernetes cluster. The daemon knows them by one protocol."""
