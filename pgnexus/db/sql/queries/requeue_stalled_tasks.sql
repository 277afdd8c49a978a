select pgflow.requeue_stalled_tasks() as requeued
