"""Feature extractors, as whole pyramids and as stages that an encoder can run one by one."""
