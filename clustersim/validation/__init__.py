"""How true the simulator is: published measurements, simulated and scored. Fits nothing."""
