select pgflow.run_id_for(%(flow)s, %(key)s) as run_id
