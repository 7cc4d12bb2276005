import assert from 'node:assert/strict';
import type { Frame } from './client.ts';

type Event = Frame['data'];

export const textOf = (event: Event | undefined): string => (event?.content ?? []).map((block) => block.text).join('');
export const ofType = (events: readonly Event[], type: string): Event[] =>
  events.filter((event) => event.type === type);

/**
 * What must hold of the events of a session that has nothing left to do, whatever happened to the platform meanwhile.
 *
 * @throws AssertionError
 */
export function expectSound(events: readonly Event[]): void {
  const ids = events.map((event) => event.id);
  assert.equal(new Set(ids).size, ids.length);
  const uses = ofType(events, 'agent.tool_use').map((event) => event.id);
  const results = ofType(events, 'agent.tool_result').map((event) => event['tool_use_id']);
  assert.deepEqual([results.length, new Set(results)], [uses.length, new Set(uses)]);
  const running = events
    .filter((event) => /session\.status_(running|idle)/.test(event.type))
    .map((event) => event.type);
  // Turns do not overlap: an end follows every begin.
  assert.deepEqual(
    running.filter((type, i) => type === 'session.status_idle' && running[i - 1] === type),
    [],
  );
  assert.equal(events.at(-1)?.type, 'session.status_idle');
}
