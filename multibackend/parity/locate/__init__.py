"""Where two runs part first."""
