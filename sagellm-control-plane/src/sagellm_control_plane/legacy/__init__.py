"""What ``ControlPlaneManager`` needs to speak as it always has, over the new plane."""
