-- cascade_complete_taskless_steps(run_id): created, no dependencies left, initial_tasks 0; how many it completed.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'list');
select pgflow.add_step('f', 'a', array['list'], step_type => 'map');
select pgflow.add_step('f', 'b', array['a'], step_type => 'map');
select pgflow.add_step('f', 'c', array['b']);
select check_.start('f');
select check_.is(pgflow.cascade_complete_taskless_steps(run_id => check_.id()), 0, 'nothing to do');
update pgflow.step_states set initial_tasks = 0 where run_id = check_.id() and step_slug = 'a';
select check_.is(pgflow.cascade_complete_taskless_steps(check_.id()), 0, 'a dependency is left');
update pgflow.step_states set remaining_deps = 0 where run_id = check_.id() and step_slug = 'a';
select check_.is(pgflow.cascade_complete_taskless_steps(check_.id()), 2, 'both maps');
select check_.is(check_.statuses(), 'list:started a:completed b:completed c:created', 'states');
select check_.is((check_.state('b')).initial_tasks, 0, '0 is passed on');
select check_.is((check_.state('c')).remaining_deps, 0, 'the single child is ready');
select check_.is((check_.state('c')).initial_tasks, 1, 'and keeps its one task');
select check_.is((check_.run()).remaining_steps, 2, 'remaining_steps');
select check_.is(pgflow.cascade_complete_taskless_steps(check_.id()), 0, 'again');
select check_.is((check_.run()).remaining_steps, 2, 'remaining_steps again');
