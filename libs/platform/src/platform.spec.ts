import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ERROR_KINDS } from '@holdfast/contracts';
import { describe, expect, it } from '@jest/globals';
import { z } from 'zod';
import { ERROR_TABLE, Health, loadConfig, redact } from './index.ts';

describe('loadConfig', () => {
  const schema = z.object({ PORT: z.coerce.number().int(), NAME: z.string().min(1), SECRET: z.string() });

  it('names every fault at once and no value', () => {
    const load = () => loadConfig(schema, { PORT: 'hunter2', SECRET_FILE: '/no/such/file' });
    expect(load).toThrow(/PORT/);
    expect(load).toThrow(/NAME/);
    expect(load).toThrow(/SECRET_FILE/);
    expect(load).not.toThrow(/hunter2/);
  });

  it('reads a secret from the file that X_FILE names', () => {
    const file = join(mkdtempSync(join(tmpdir(), 'holdfast-config-')), 'secret');
    writeFileSync(file, 's3cret\n');
    expect(loadConfig(schema, { PORT: '1', NAME: 'x', SECRET_FILE: file })).toEqual({
      PORT: 1,
      NAME: 'x',
      SECRET: 's3cret',
    });
  });

  it('takes an empty variable for one that is not set', () => {
    const file = join(mkdtempSync(join(tmpdir(), 'holdfast-config-')), 'secret');
    writeFileSync(file, 's3cret\n');
    const withDefault = schema.extend({ RETRIES: z.coerce.number().min(1).default(4) });
    expect(loadConfig(withDefault, { PORT: '1', NAME: 'x', SECRET: '', SECRET_FILE: file, RETRIES: '' })).toEqual({
      PORT: 1,
      NAME: 'x',
      SECRET: 's3cret',
      RETRIES: 4,
    });
    expect(() => loadConfig(schema, { PORT: '1', NAME: '', SECRET: 's' })).toThrow('NAME: is not set');
  });
});

describe('redact', () => {
  it('shortens credentials and passwords wherever they stand', () => {
    const key = `hf_${'a'.repeat(43)}`;
    expect(redact(`key ${key} and sk-abcdefghijklmnop`)).toBe('key hf_aaaa… and sk-abcd…');
    expect(redact('postgres://owner:hunter2@127.0.0.1/db')).toBe('postgres://owner:…@127.0.0.1/db');
  });
});

describe('the error table', () => {
  it('has a rule for every kind; only what can pass later may be retried', () => {
    expect(Object.keys(ERROR_TABLE).sort()).toEqual([...ERROR_KINDS].sort());
    expect(ERROR_KINDS.filter((kind) => ERROR_TABLE[kind].retryable)).toEqual([
      'conflict',
      'exhausted',
      'unavailable',
      'defect',
    ]);
  });
});

describe('Health', () => {
  it('says by name what it waits for', async () => {
    const health = new Health();
    health.add('postgres', () => undefined);
    expect(await health.readiness()).toEqual({ ready: true, waiting: {} });
    health.add('bus', () => 'not connected');
    health.add('log', () => Promise.reject(new Error('boom')));
    health.drain();
    expect(await health.readiness()).toEqual({
      ready: false,
      waiting: { bus: 'not connected', log: 'cannot be reached', shutdown: 'the service is draining' },
    });
  });
});
