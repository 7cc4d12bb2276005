import { mkdtempSync, readdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { uploadFields } from '@holdfast/contracts';
import { type BlobStore, openBlobStore } from '@holdfast/event-store';
import { toWireFailure } from '@holdfast/platform';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { receiveUpload } from './upload.ts';

const MAX_BYTES = 300_000;
const B = 'b0undary';

let folder: string;
let blobs: BlobStore;
let server: Server;
let puts = 0;

beforeAll(async () => {
  server = createServer((request, response) => {
    receiveUpload(request, { maxBytes: MAX_BYTES, fields: uploadFields }, (bytes) => {
      puts += 1;
      return blobs.put('wrkspc_one', bytes);
    }).then(
      (upload) => response.end(JSON.stringify({ status: 200, ...upload })),
      (error: unknown) => {
        const failure = toWireFailure(error);
        response.end(JSON.stringify({ status: failure.status, code: failure.error.code, said: failure.error.message }));
      },
    );
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
});
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-upload-'));
  blobs = await openBlobStore({ folder });
  puts = 0;
});
afterEach(() => rm(folder, { recursive: true }));
afterAll(() => new Promise((resolve) => server.close(resolve)));

interface Answer {
  readonly status: number;
  readonly code?: string;
  readonly said?: string;
  readonly filename?: string;
  readonly mimeType?: string;
  readonly fields?: object;
  readonly kept?: { readonly digest: string; readonly sizeBytes: number };
}

/** Sends a body in pieces over a plain connection; `cut` ends the connection's sending after so many bytes. */
async function send(body: Buffer, options: { type?: string; cuts?: readonly number[]; length?: number } = {}) {
  const { type = `multipart/form-data; boundary=${B}`, cuts = [], length = body.length } = options;
  const socket = connect((server.address() as AddressInfo).port, '127.0.0.1');
  socket.setNoDelay(true);
  let text = '';
  socket.on('data', (piece) => (text += piece.toString()));
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  socket.on('error', () => undefined);
  socket.write(
    `POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: ${type}\r\ncontent-length: ${length}\r\n\r\n`,
  );
  let from = 0;
  for (const cut of [...cuts, body.length]) {
    socket.write(body.subarray(from, cut));
    await sleep(0);
    from = cut;
  }
  if (length > body.length) socket.end();
  await closed;
  const at = text.indexOf('\r\n\r\n');
  const json = /\{.*\}/s.exec(text.slice(at))?.[0];
  return json === undefined ? null : (JSON.parse(json) as Answer);
}

const part = (headers: string, content: string | Buffer = 'hello'): Buffer =>
  Buffer.concat([Buffer.from(`--${B}\r\n${headers}\r\n\r\n`), Buffer.from(content), Buffer.from('\r\n')]);
const file = (filename: string, content: string | Buffer = 'hello', type = 'text/plain'): Buffer =>
  part(`content-disposition: form-data; name="file"; filename="${filename}"\r\ncontent-type: ${type}`, content);
const field = (name: string, value: string): Buffer => part(`content-disposition: form-data; name="${name}"`, value);
const form = (...parts: Buffer[]): Buffer => Buffer.concat([...parts, Buffer.from(`--${B}--\r\n`)]);
/** Every file of the store. */
const stored = (): string[] =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => entry.name);

describe('a form with one file', () => {
  it.each([
    ['report.txt', 'report.txt'],
    ['übersicht 報告 🙂.txt', 'übersicht 報告 🙂.txt'],
    ['../../etc/passwd', 'passwd'],
    ['C:\\\\Users\\\\me\\\\notes.md', 'notes.md'],
    ['', 'unnamed.txt'],
    ['..', 'unnamed.txt'],
  ])('named "%s" is kept as "%s"', async (given, kept) => {
    expect(await send(form(file(given)))).toMatchObject({
      status: 200,
      filename: kept,
      mimeType: 'text/plain',
      fields: {},
      kept: { sizeBytes: 5, digest: '2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824' },
    });
    expect(stored()).toHaveLength(1);
  });

  it('may have no name, no type, no bytes, and its fields before or after it', async () => {
    const bare = part('content-disposition: form-data; name="file"', '');
    expect(await send(form(bare))).toMatchObject({ status: 200, filename: 'unnamed.txt', kept: { sizeBytes: 0 } });
    const expires = field('expires_in_seconds', '3600');
    for (const body of [form(expires, file('a')), form(file('a'), expires)])
      expect(await send(body)).toMatchObject({ status: 200, fields: { expires_in_seconds: 3600 } });
  });

  it('is the same however its bytes are cut, and whatever they hold', async () => {
    const nasty = ['\r\n', '--', B, `\r\n--${B}x`, `\r\n--${B.slice(0, -1)}`, '\0', 'a'];
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.constantFrom(...nasty), { maxLength: 30 }),
        fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 6 }),
        async (pieces, shares) => {
          const content = pieces.join('');
          // A line that begins with the boundary ends the part: no client sends that.
          fc.pre(!`\r\n${content}\r\n`.includes(`\r\n--${B}`));
          const body = form(file('a', content), field('expires_in_seconds', '3600'));
          const cuts = shares.map((share) => Math.floor(share * body.length)).sort((a, b) => a - b);
          const answer = await send(body, { cuts });
          expect(answer).toMatchObject({ status: 200, kept: { sizeBytes: Buffer.byteLength(content) } });
          expect((await blobs.read('wrkspc_one', answer?.kept?.digest ?? '')).toString()).toBe(content);
        },
      ),
      { numRuns: 150, seed: 20_261_124 },
    );
  });

  it('may be as large as is allowed and no larger, whether it says so or not', async () => {
    const most = Buffer.alloc(MAX_BYTES, 'x');
    expect(await send(form(file('a', most)))).toMatchObject({ status: 200, kept: { sizeBytes: MAX_BYTES } });
    const before = stored();
    expect(await send(form(file('a', Buffer.concat([most, Buffer.from('x')]))))).toMatchObject({ status: 413 });
    expect(await send(Buffer.alloc(0), { length: MAX_BYTES * 10 })).toMatchObject({ status: 413 });
    expect(stored()).toEqual(before);
  });
});

describe('what is no form with one file', () => {
  const good = form(file('a', 'x'.repeat(100_000)), field('expires_in_seconds', '3600'));

  it.each<[string, Buffer, string]>([
    ['without a file', form(field('expires_in_seconds', '3600')), 'upload.no-file'],
    ['with nothing', form(), 'upload.no-file'],
    ['with two files', form(file('a'), file('b')), 'upload.files'],
    [
      'with a file of another name',
      form(part('content-disposition: form-data; name="doc"; filename="a"')),
      'upload.field',
    ],
    [
      'with another file too',
      form(file('a'), part('content-disposition: form-data; name="b"; filename="b"')),
      'upload.field',
    ],
    ['with an unknown field', form(file('a'), field('purpose', 'x')), 'request.invalid'],
    ['with a field that has no name', form(file('a'), part('content-disposition: form-data', 'x')), 'request.invalid'],
    ['with a field named __proto__', form(file('a'), field('__proto__', 'x')), 'request.invalid'],
    [
      'with a field twice',
      form(...['1', '2'].map((n) => field('expires_in_seconds', `360${n}`)), file('a')),
      'upload.field',
    ],
    ['with too long a field', form(field('expires_in_seconds', '1'.repeat(9_000)), file('a')), 'upload.field'],
    [
      'with too many parts',
      form(...Array.from({ length: 20 }, (_, n) => field(`f${n}`, '')), file('a')),
      'upload.parts',
    ],
    ['that expires too early', form(file('a'), field('expires_in_seconds', '3599')), 'request.invalid'],
    ['that expires never', form(file('a'), field('expires_in_seconds', 'never')), 'request.invalid'],
    ['whose file has a bad name', form(file('a:b')), 'request.invalid'],
    ['whose file has a name too long', form(file('a'.repeat(256))), 'request.invalid'],
    ['whose file has a bad type', form(file('a', 'x', 'nonsense')), 'request.invalid'],
    ['that is JSON', Buffer.from('{"file":"x"}'), 'upload.malformed'],
    ['that is empty', Buffer.alloc(0), 'upload.malformed'],
  ])('%s is refused, and nothing is kept of it', async (_name, body, code) => {
    expect(await send(body)).toMatchObject({ status: 400, code });
    expect(stored()).toEqual([]);
  });

  it.each(['application/json', 'multipart/form-data', 'multipart/mixed; boundary=b', 'multipart/form-data; boundary='])(
    'of the type "%s" is refused',
    async (type) => {
      expect(await send(good, { type })).toMatchObject({ status: 400 });
      expect(puts).toBe(0);
    },
  );

  it('that ends anywhere before its end is refused, and nothing is kept of it', async () => {
    const small = form(file('a', 'some content'), field('expires_in_seconds', '3600'));
    // The last four bytes are dashes and a line break, of which a form needs the dashes.
    for (let end = 0; end < small.length - 3; end++) {
      expect(await send(small.subarray(0, end))).toMatchObject({ status: 400 });
      expect(stored()).toEqual([]);
    }
  });

  it('because its sender went away leaves nothing, and the next one is served', async () => {
    for (const sent of [0, 50, 200, 60_000, good.length - 20]) {
      await send(good.subarray(0, sent), { length: good.length });
      for (let n = 0; n < 100 && stored().length > 0; n++) await sleep(10);
      expect(stored()).toEqual([]);
    }
    expect(await send(good)).toMatchObject({ status: 200 });
  });
});
