"""Running the experts over data: jobs, stages, pipelines and stores."""
