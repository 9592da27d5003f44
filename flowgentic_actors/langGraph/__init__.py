"""The memory managers of FlowGentic, under its module names."""
