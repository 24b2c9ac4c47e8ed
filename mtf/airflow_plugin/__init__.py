"""Our pages in the Airflow UI: the rollout, Data Docs, and the way to MLflow. The only module that imports Airflow."""
