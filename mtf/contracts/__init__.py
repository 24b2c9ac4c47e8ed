"""What crosses a boundary between rooms: Arrow schemas, with units and meaning in each field's metadata."""

from mtf.contracts.schemas import SCHEMA_VERSION, check_table, feedback_schema, requests_schema, transitions_schema

__all__ = ["SCHEMA_VERSION", "check_table", "feedback_schema", "requests_schema", "transitions_schema"]
