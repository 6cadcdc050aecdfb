"""The HTTP service: a bounded queue of requests in front of one predictor."""
