"""Who may do how much: roles, rates, fair shares."""
