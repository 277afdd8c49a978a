-- Only a single parent of a map child can be of the wrong type: maps give arrays, other steps what they like.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a', step_type => 'map');
select pgflow.add_step('f', 'b', array['a'], step_type => 'map');
select pgflow.add_step('f', 'c', array['b']);
select check_.start('f', '[1]');
select check_.complete('a', '{"not": "an array"}', 0);
select check_.is(check_.statuses(), 'a:completed b:started c:created', 'a task of a map parent gives an object');
select check_.complete('b', '"text"', 0);
select check_.complete('c', '"text"');
select check_.is((check_.run()).status, 'completed', 'single steps without map children give anything');
-- an empty array is an array
select check_.fan();
select check_.start('fan', '{}', 2);
select check_.complete('list', '[]', 0, 2);
select check_.is(check_.statuses(2), 'list:completed each:completed total:started', 'an empty array');
