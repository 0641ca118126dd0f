"""What happens in a study, mirrored to MLflow. The only room that knows MLflow."""
