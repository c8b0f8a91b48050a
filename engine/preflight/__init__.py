"""What is looked at before a run starts: its directory made, the machine examined, plug-ins tried."""
