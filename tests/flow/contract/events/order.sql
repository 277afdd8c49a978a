-- A step's completion is told before the start of its children; the run's end is told last.
select check_.listen();
select check_.diamond();
select check_.start('diamond');
select check_.complete('top', '1');
select check_.is(check_.events(),
  'run:started step:top:started step:top:completed step:left:started step:right:started', 'after top');
select check_.complete('right', '1');
select check_.complete('left', '1');
select check_.complete('bottom', '1');
select check_.is(check_.events(),
  'run:started step:top:started step:top:completed step:left:started step:right:started step:right:completed '
  'step:left:completed step:bottom:started step:bottom:completed run:completed', 'the whole');
