import type { FileResource } from '@holdfast/contracts';
import { describe, expect, it } from '@jest/globals';
import { ApiError } from '../src/lib/api.ts';
import { Attachments, attachedFile, attachmentBlock } from '../src/lib/attachments.ts';

const fileOf = (id: string, filename: string): FileResource => ({
  ...{ id, type: 'file', filename, mime_type: 'text/plain', size_bytes: 1, created_at: '2026-01-01T00:00:00Z' },
  ...{ downloadable: true, expires_at: null, scope: null },
});
const source = (name: string, size = 10): File => new File(['x'.repeat(size)], name);

/** Uploads that end when the spec says so, in a tab with a store. */
function tab() {
  const kept = new Map<string, string>();
  const store = {
    getItem: (place: string) => kept.get(place) ?? null,
    setItem: (place: string, text: string) => void kept.set(place, text),
    removeItem: (place: string) => void kept.delete(place),
  };
  const running = new Map<string, { key: string; sent: (bytes: number) => void; end: (error?: Error) => void }>();
  const upload: NonNullable<ConstructorParameters<typeof Attachments>[1]>['upload'] = (_file, name, options) =>
    new Promise((resolve, reject) => {
      options.signal.addEventListener('abort', () => reject(options.signal.reason as Error));
      running.set(name, {
        key: options.idempotencyKey,
        sent: options.onSent,
        end: (error) => {
          running.delete(name);
          if (error === undefined) resolve(fileOf(`file_${name}`, name));
          else reject(error);
        },
      });
    });
  const open = () => new Attachments('attached:sesn_1', { store, upload });
  const settled = () => new Promise((resolve) => setImmediate(resolve));
  return { running, kept, open, settled };
}
const states = (attachments: Attachments) => attachments.snapshot().map(({ name, state }) => `${name} ${state.type}`);

describe('attachments', () => {
  it('are uploaded two at a time, and tell how far they are', async () => {
    const { running, open, settled } = tab();
    const attachments = open();
    attachments.add([source('a'), source('b'), source('c')], 10);
    expect(states(attachments)).toEqual(['a uploading', 'b uploading', 'c waiting']);
    running.get('a')?.sent(7);
    expect(attachments.snapshot()[0]?.state).toEqual({ type: 'uploading', sentBytes: 7 });
    running.get('b')?.end();
    await settled();
    expect(states(attachments)).toEqual(['a uploading', 'b uploaded', 'c uploading']);
  });

  it('larger than the server takes are refused before they are sent', () => {
    const { running, open } = tab();
    const attachments = open();
    attachments.add([source('a', 2_048)], 1_024);
    expect(running.size).toBe(0);
    expect(attachments.snapshot()).toMatchObject([
      { state: { type: 'failed', message: 'Larger than the 1.0 KiB that the server takes', isFinal: true } },
    ]);
  });

  it('that are taken away are broken off, and make room for the next', async () => {
    const { running, open, settled } = tab();
    const attachments = open();
    attachments.add([source('a'), source('b'), source('c')], null);
    attachments.remove(attachments.snapshot()[0]?.key ?? '');
    await settled();
    expect(states(attachments)).toEqual(['b uploading', 'c uploading']);
    running.get('b')?.end();
    running.get('c')?.end();
    await settled();
    expect(states(attachments)).toEqual(['b uploaded', 'c uploaded']);
  });

  it('that failed are tried again under the same key, unless the server will never take them', async () => {
    const { running, open, settled } = tab();
    const attachments = open();
    attachments.add([source('a'), source('b')], null);
    const key = running.get('a')?.key;
    running.get('a')?.end(new ApiError(0, 'connection_error', 'away'));
    running.get('b')?.end(new ApiError(413, 'request_too_large', 'too large'));
    await settled();
    expect(attachments.snapshot().map(({ state }) => state)).toEqual([
      { type: 'failed', message: 'away', isFinal: false },
      { type: 'failed', message: 'too large', isFinal: true },
    ]);
    attachments.retry(key ?? '');
    expect(running.get('a')?.key).toBe(key);
    running.get('a')?.end();
    await settled();
    expect(states(attachments)).toEqual(['a uploaded', 'b failed']);
  });

  it('that were uploaded are there after a reload, until they went with a message', async () => {
    const { running, kept, open, settled } = tab();
    const before = open();
    before.add([source('a'), source('b')], null);
    running.get('a')?.end();
    await settled();
    const after = open();
    expect(after.snapshot()).toEqual([before.snapshot()[0]]);
    after.sent(after.snapshot());
    expect(after.snapshot()).toEqual([]);
    expect(kept.size).toBe(0);
  });
});

it('a message says which file came with it', () => {
  expect(attachedFile(attachmentBlock(fileOf('file_1', 'übersicht 1.csv')))).toEqual({
    fileId: 'file_1',
    name: 'übersicht 1.csv',
  });
  expect(attachedFile({ type: 'text', text: '/mnt/session/uploads/file_1/a' })).toBeNull();
  const data = '/mnt/session/uploads/other/a/b';
  expect(attachedFile({ type: 'document', source: { type: 'text', media_type: 'text/plain', data } })).toBeNull();
});
