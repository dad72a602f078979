"""Workers among each other: the world, the exchange of gradients and of rows."""
