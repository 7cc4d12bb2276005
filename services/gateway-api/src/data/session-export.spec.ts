import { createHash } from 'node:crypto';
import { exportLine } from '@holdfast/contracts';
import { describe, expect, it } from '@jest/globals';
import type { ShownEvent } from './event.reader.ts';
import { exportLines } from './session-export.ts';

async function* events(count: number): AsyncGenerator<ShownEvent, void> {
  for (let n = 1; n <= count; n++) {
    const frame = { id: `sevt_${n}`, type: 'agent.thinking', processed_at: '2026-01-01T00:00:00.000Z' };
    yield { version: 2 * n, type: frame.type, json: JSON.stringify(frame) };
  }
}
async function exported(count: number): Promise<string[]> {
  const lines: string[] = [];
  for await (const line of exportLines('sesn_a', events(count))) lines.push(line);
  return lines;
}

describe('an export', () => {
  it('is one valid line for each frame between its head and its end', async () => {
    const lines = (await exported(3)).map((line) => exportLine.parse(JSON.parse(line)));
    expect(lines).toMatchObject([
      { type: 'export', session_id: 'sesn_a' },
      { type: 'event', version: 2, event: { id: 'sevt_1' } },
      { type: 'event', version: 4 },
      { type: 'event', version: 6 },
      { type: 'end', events: 3, last_version: 6, head_hash: lines[3]?.hash },
    ]);
    expect((await exported(0)).map((line) => (JSON.parse(line) as { type: string }).type)).toEqual(['export', 'end']);
  });

  it('chains every line to the one before it, over the very bytes that are sent', async () => {
    let previous = '';
    for (const line of await exported(3)) {
      const [, body, hash] = /^(.*),"hash":"([0-9a-f]{64})"\}\n$/.exec(line) ?? [];
      previous = createHash('sha256').update(`${previous}${body}}`).digest('hex');
      expect(hash).toBe(previous);
    }
  });

  it('agrees with a shorter one up to that one’s end', async () => {
    const [short, long] = [await exported(2), await exported(5)];
    expect(long.slice(0, 3)).toEqual(short.slice(0, 3));
    expect(long[3]).not.toBe(short[3]);
  });
});
