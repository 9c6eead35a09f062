"""How fast this machine is with recurrent layers, and why: `headwater bench` and `headwater doctor`."""
