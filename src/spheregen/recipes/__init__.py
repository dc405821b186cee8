"""The shipped recipes, one YAML file a run; `spheregen recipes` lists them."""
