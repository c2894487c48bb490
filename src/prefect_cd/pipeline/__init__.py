"""The pipeline file: its models, how it is loaded, and how its mistakes are reported."""
