"""Statistics: metrics, thresholds, prevalence, confidence bounds, resampling."""
