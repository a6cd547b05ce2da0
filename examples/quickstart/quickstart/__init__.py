"""The smallest Flower app there can be: linear regression with numpy."""
