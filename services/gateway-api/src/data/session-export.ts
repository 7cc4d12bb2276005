import { createHash } from 'node:crypto';
import type { ShownEvent } from './event.reader.ts';

/**
 * The lines of an export (NDJSON): a head, one line for each durable frame, an end that says how many there were. Each
 * line ends with `,"hash":"…"}`: SHA-256, in hex, over the hash of the line before it (nothing for the first) and the line
 * without that member. So a line cannot be changed, left out or moved, and an export without its end is seen to be cut.
 * Exports of one session agree line by line up to the end of the shorter one.
 */
export async function* exportLines(sessionId: string, events: AsyncIterable<ShownEvent>): AsyncGenerator<string, void> {
  let hash = '';
  const line = (json: string): string => {
    hash = createHash('sha256').update(hash).update(json).digest('hex');
    return `${json.slice(0, -1)},"hash":"${hash}"}\n`;
  };
  let count = 0;
  let lastVersion = 0;
  yield line(JSON.stringify({ type: 'export', format: 'holdfast-export-1', session_id: sessionId }));
  for await (const { version, json } of events) {
    yield line(`{"type":"event","version":${version},"event":${json}}`);
    count += 1;
    lastVersion = version;
  }
  yield line(JSON.stringify({ type: 'end', events: count, last_version: lastVersion, head_hash: hash }));
}
