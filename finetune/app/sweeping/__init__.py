"""A sweep: the space of trials, which of them go on, and the processes that train them."""
