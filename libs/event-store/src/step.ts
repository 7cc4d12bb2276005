import { channel } from 'node:diagnostics_channel';

/**
 * Says that a process has come to a named point: `step.publish('append.committed')`. Nobody listens in production and
 * it costs nothing; a spec subscribes and kills the process there, to see that nothing is lost at any of them.
 */
export const step = channel('holdfast:step');
