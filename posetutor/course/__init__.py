"""Tools of teacher and student: chapters as data, student copies, grading, `posetutor lab`, slides and routes."""
