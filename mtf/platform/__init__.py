"""The platform of one machine: its processes, ports, health and state folder."""
