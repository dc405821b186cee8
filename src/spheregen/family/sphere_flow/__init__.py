"""System 3, Sphere Flow: a generator of rough images and a flow that refines them in few steps."""
