import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it, jest } from '@jest/globals';
import { pino } from 'pino';
import { onShutdown, runService } from './index.ts';

interface Line {
  msg: string;
  signal?: string;
}
const lines: Line[] = [];
const logger = pino({ level: 'trace' }, { write: (line: string) => void lines.push(JSON.parse(line) as Line) });
const EVENTS = ['SIGTERM', 'SIGINT', 'unhandledRejection', 'uncaughtException'];
let exits: unknown[];

beforeEach(() => {
  exits = [];
  lines.length = 0;
  jest.spyOn(process, 'exit').mockImplementation((code) => void exits.push(code) as never);
});
afterEach(() => {
  for (const event of EVENTS) process.removeAllListeners(event);
  jest.restoreAllMocks();
});

describe('a stopping service', () => {
  it('drains once and ends with 0', async () => {
    let stops = 0;
    onShutdown(logger, async () => {
      stops++;
      await sleep(20);
    });
    process.emit('SIGTERM', 'SIGTERM');
    expect(exits).toEqual([]);
    await sleep(60);
    expect([stops, exits]).toEqual([1, [0]]);
    expect(lines).toMatchObject([{ msg: 'draining', signal: 'SIGTERM' }]);
  });

  it('ends at once on a second signal', () => {
    onShutdown(logger, () => new Promise(() => undefined));
    process.emit('SIGTERM', 'SIGTERM');
    process.emit('SIGINT', 'SIGINT');
    expect(exits).toEqual([1]);
  });

  it('ends with 1 when draining fails or a rejection is nobody’s', async () => {
    onShutdown(logger, () => Promise.reject(new Error('stuck')));
    process.emit('SIGTERM', 'SIGTERM');
    await sleep(10);
    process.emit('uncaughtException', new Error('lost'));
    expect(exits).toEqual([1, 1]);
    expect(lines.map((line) => line.msg)).toEqual(['draining', 'shutdown failed', 'uncaughtException']);
  });

  it('says in one line why it cannot start, without secrets', async () => {
    const written: string[] = [];
    jest.spyOn(process.stderr, 'write').mockImplementation((text) => written.push(String(text)) > 0);
    await runService(() => Promise.reject(new Error('no route to postgres://owner:hunter2@10.0.0.1/holdfast')));
    expect(exits).toEqual([1]);
    expect(written).toEqual(['no route to postgres://owner:…@10.0.0.1/holdfast\n']);
  });
});
