"""A study's events, mirrored to MLflow. The only package that knows MLflow."""
