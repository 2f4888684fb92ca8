"""The browser service and the screen of simulated browser machines."""
