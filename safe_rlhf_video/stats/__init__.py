"""Statistics: metrics, thresholds, prevalence, confidence bounds, intervals."""
