"""Generated stubs of the package sessiond.v1."""
