"""Meta winning tickets: sparse networks that meta-train as well as dense ones. Start with `masks`."""
