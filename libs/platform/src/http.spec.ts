import { once } from 'node:events';
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { AppError, ERROR_KINDS, type ErrorKind } from '@holdfast/contracts';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { Body, Controller, Get, Module, Param, Post, Res } from '@nestjs/common';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import fc from 'fast-check';
import { type Logger, pino } from 'pino';
import { z } from 'zod';
import { createHttpApp, ERROR_TABLE, Health, parseJsonBody } from './index.ts';

const thing = z.strictObject({ name: z.string().min(1), tags: z.array(z.string()).default([]) });

@Controller()
class ThingsController {
  @Post('things')
  make(@Body({ schema: thing }) body: z.infer<typeof thing>): unknown {
    return body;
  }
  @Get('fail/:kind')
  fail(@Param('kind') kind: ErrorKind): never {
    throw new AppError(kind, `test.${kind}`, 'the message', { details: { hint: 7 } });
  }
  @Get('crash')
  crash(): never {
    throw new TypeError('the password is hunter2');
  }
  @Get('half')
  half(@Res() reply: { raw: { write(text: string): void } }): never {
    reply.raw.write('begun');
    throw new AppError('unavailable', 'test.half', 'stopped half way');
  }
}
@Module({ controllers: [ThingsController] })
class ThingsModule {}

const lines: Record<string, unknown>[] = [];
const health = new Health();
let app: NestFastifyApplication;
let origin: string;

beforeAll(async () => {
  const logger: Logger = pino(
    { level: 'trace' },
    { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) },
  );
  app = await createHttpApp(ThingsModule, {
    logger,
    health,
    bodyLimitBytes: 10_000,
    requestTimeoutMs: 500,
    paceTimeoutMs: 20_000,
  });
  const fastify = app.getHttpAdapter().getInstance();
  fastify.addContentTypeParser('text/pieces', (_request, _body, done) => done(null));
  fastify.post('/pieces', { config: { atItsPace: true } }, async (request) => {
    let bytes = 0;
    for await (const piece of request.raw) bytes += (piece as Buffer).length;
    return { bytes };
  });
  await app.listen(0, '127.0.0.1');
  origin = await app.getUrl();
});
afterAll(() => app.close());

interface Envelope {
  type: string;
  request_id: string;
  error: { type: string; message: string; details: Record<string, unknown> };
}
async function call(path: string, init?: RequestInit) {
  const response = await fetch(`${origin}${path}`, init);
  return { status: response.status, headers: response.headers, body: (await response.json()) as Envelope };
}
function post(text: string | Uint8Array<ArrayBuffer>) {
  return call('/things', { method: 'POST', body: text, headers: { 'content-type': 'application/json' } });
}

describe('the error envelope', () => {
  it.each(ERROR_KINDS)('of %s follows the table', async (kind) => {
    const { status, headers, body } = await call(`/fail/${kind}`);
    const rule = ERROR_TABLE[kind];
    expect(status).toBe(rule.httpStatus);
    expect(headers.get('x-should-retry')).toBe(String(rule.retryable));
    expect(headers.get('request-id')).toMatch(/^req_/);
    expect(body.type).toBe('error');
    expect(body.request_id).toBe(headers.get('request-id'));
    expect(body.error.type).toBe(rule.wireType);
    expect(body.error.details['error_code']).toBe(`test.${kind}`);
  });

  it('shows details only where the caller can act on them', async () => {
    expect((await call('/fail/rejected')).body.error.details).toEqual({ hint: 7, error_code: 'test.rejected' });
    expect((await call('/fail/unavailable')).body.error.details).toEqual({ error_code: 'test.unavailable' });
  });

  it('of a defect tells the log everything and the caller nothing', async () => {
    const { status, body } = await call('/crash');
    expect(status).toBe(500);
    expect(JSON.stringify(body)).not.toContain('hunter2');
    expect(JSON.stringify(lines.find((line) => line['requestId'] === body.request_id))).toContain('hunter2');
  });

  it('of an unknown route is a 404, of a bad path a 400', async () => {
    expect(await call('/nowhere?token=hunter2')).toMatchObject({
      status: 404,
      body: { error: { type: 'not_found_error' } },
    });
    expect(await call('/fail/%E0%A4%A')).toMatchObject({
      status: 400,
      body: { error: { type: 'invalid_request_error' } },
    });
    expect(JSON.stringify(lines.at(-1))).not.toContain('hunter2');
  });

  it('cuts a response that has begun: a clean end would look like success', async () => {
    await expect(fetch(`${origin}/half`).then((response) => response.text())).rejects.toThrow();
  });

  it.each([
    ['no HTTP', 'NONSENSE\r\n\r\n', 400],
    ['of no host', 'GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n', 400],
    ['an expectation', 'GET /no HTTP/1.1\r\nhost: x\r\nexpect: wonders\r\nconnection: close\r\n\r\n', 404],
    ['too many headers', `GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: ${'a'.repeat(40_000)}\r\n\r\n`, 431],
    ['garbled chunks', 'POST /things HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n', 400],
    ['two lengths', 'POST /things HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}', 400],
    ['a body that does not come', 'POST /things HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{', 408],
  ])('answers bytes that are %s', async (_name, bytes, status) => {
    const text = await exchange(bytes);
    expect(text).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    expect(text).toMatch(/"type":"(invalid_request|not_found|timeout)_error"|"type":"request_too_large"/);
    expect(text).toContain('"request_id":"req_');
  });
});

it('that a route reads at its own pace may take longer than others', async () => {
  const socket = connect(Number(new URL(origin).port), '127.0.0.1');
  let got = '';
  socket.on('data', (chunk) => (got += chunk.toString()));
  socket.write(
    'POST /pieces HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: text/pieces\r\ncontent-length: 6\r\n\r\n',
  );
  for (let n = 0; n < 6; n++) {
    await sleep(200);
    socket.write('x');
  }
  await once(socket, 'close');
  expect(got).toMatch(/^HTTP\/1.1 200 .*\{"bytes":6\}/s);
});

/** What comes back for these bytes until the server closes. */
function exchange(bytes: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(Number(new URL(origin).port), '127.0.0.1', () => socket.write(bytes));
    let got = '';
    socket.on('data', (chunk) => (got += chunk.toString()));
    socket.on('close', () => resolve(got));
    socket.on('error', reject);
  });
}

describe('a body', () => {
  it('is parsed by its schema', async () => {
    expect(await post('{"name":"x"}')).toMatchObject({ status: 201, body: { name: 'x', tags: [] } });
  });
  it('with faults is refused with their paths', async () => {
    const { status, body } = await post('{"name":"","tags":[1],"more":true}');
    expect(status).toBe(400);
    expect(body.error.message).toMatch(/name: .*tags\.0: /);
  });
  it.each([
    ['cut short', '{"name":'],
    ['an open string', '{"name":"x\\"}'],
    ['a bare word', 'name'],
    ['a prototype key', '{"__proto__":{"x":1}}'],
    ['an escaped prototype key', '{"\\u005f_proto__":{"x":1}}'],
    ['a constructor', '{"constructor":{"prototype":{}}}'],
    ['NUL', '{"name":"a\\u0000"}'],
    ['half a surrogate pair', '{"name":"\\ud800"}'],
    ['an infinite number', '{"name":1e999}'],
    ['too deep', '['.repeat(5_000)],
    ['bad UTF-8', new Uint8Array([0x22, 0xff, 0x22])],
    ['XML', '<name/>'],
    ['absent', ''],
  ])('that is %s is a 400 with the envelope', async (_name, text) => {
    const { status, headers, body } = await post(text);
    expect(status).toBe(400);
    expect(body.error.type).toBe('invalid_request_error');
    expect(headers.get('x-should-retry')).toBe('false');
  });
  it('above the limit is a 413, and the connection goes on', async () => {
    const answer = await post(JSON.stringify({ name: 'x'.repeat(8_000_000) }));
    expect(answer).toMatchObject({ status: 413, body: { error: { type: 'request_too_large' } } });
    expect(answer.headers.get('connection')).not.toBe('close');
  });
});

describe('parseJsonBody', () => {
  it('agrees with JSON.parse on every storable value', () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 20 }), (value) => {
        const text = JSON.stringify(value);
        let parsed: unknown;
        try {
          parsed = parseJsonBody(Buffer.from(text));
        } catch (error) {
          expect(text).toMatch(/\\u0000|\\ud[89a-f]|__proto__|constructor|prototype/);
          expect(error).toMatchObject({ code: 'request.invalid-json' });
          return;
        }
        expect(parsed).toEqual(JSON.parse(text));
      }),
    );
  });
  it('bounds the number of values before it allocates any', () => {
    expect(() => parseJsonBody(Buffer.from(`[${'[],'.repeat(2_000_000)}1]`))).toThrow(/more than/);
  });
});

describe('health', () => {
  it('answers whether the process lives and what it waits for', async () => {
    expect((await fetch(`${origin}/healthz`)).status).toBe(200);
    expect((await fetch(`${origin}/readyz`)).status).toBe(200);
    health.add('bus', () => 'not connected');
    const response = await fetch(`${origin}/readyz`);
    expect(response.status).toBe(503);
    expect(await response.json()).toEqual({ ready: false, waiting: { bus: 'not connected' } });
  });
});
