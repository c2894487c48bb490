"""The node of the embedded cluster: its pods are processes of this machine, its Services are TCP proxies."""
