"""Clients of sessiond, the service that keeps login sessions."""
