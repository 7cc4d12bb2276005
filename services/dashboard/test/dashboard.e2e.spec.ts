import { execFile } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { launchChromium, startPlatform, type TestPlatform } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type { Browser, BrowserContext, Locator, Page } from 'playwright-core';

/** Where to leave pictures of every page, for people to look at. */
const PICTURES = process.env.HOLDFAST_PICTURES;

let platform: TestPlatform;
let browser: Browser;
let context: BrowserContext;
let page: Page;
const faults: string[] = [];

beforeAll(async () => {
  platform = await startPlatform({ DASHBOARD_ALLOWED_HOSTS: 'dashboard.example' });
  browser = await launchChromium();
  context = await browser.newContext({ viewport: { width: 1280, height: 800 }, baseURL: platform.dashboardUrl });
  // As browsers have it on every address but https and localhost.
  await context.addInitScript(() => Reflect.deleteProperty(Crypto.prototype, 'randomUUID'));
  page = await context.newPage();
  page.setDefaultTimeout(10_000);
  page.on('pageerror', (error) => faults.push(String(error)));
  page.on('console', (message) => {
    // A cut connection is logged by the browser itself; everything else is ours.
    if (message.type() === 'error' && !/Failed to load resource|net::ERR/.test(message.text()))
      faults.push(message.text());
  });
}, 240_000);
afterAll(async () => {
  await browser?.close();
  await platform?.stop();
}, 60_000);

async function picture(name: string): Promise<void> {
  if (PICTURES === undefined) return;
  mkdirSync(PICTURES, { recursive: true });
  await page.screenshot({ path: join(PICTURES, `${name}.png`) });
}
async function say(text: string): Promise<void> {
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.keyboard.press('Enter');
}
const log = () => page.getByRole('log');
const sessionId = () => new URL(page.url()).pathname.split('/')[2] ?? '';
/** Sends events as another client of the session. */
async function sendFromElsewhere(text: string): Promise<void> {
  const sent = await fetch(`${platform.apiUrl}/v1/sessions/${sessionId()}/events`, {
    method: 'POST',
    headers: { 'x-api-key': platform.apiKey, 'content-type': 'application/json' },
    body: JSON.stringify({ events: [{ type: 'user.message', content: [{ type: 'text', text }] }] }),
  });
  expect(sent.status).toBe(200);
}
/** Waits until it is to be seen. */
const expectSeen = (locator: Locator) => expect(locator.waitFor()).resolves.toBeUndefined();
const expectGone = (locator: Locator) => expect(locator.waitFor({ state: 'hidden' })).resolves.toBeUndefined();

describe('signing in', () => {
  it('sends strangers to the sign-in page and takes no wrong key', async () => {
    await page.goto('/agents');
    await page.waitForURL(/sign-in\?next=%2Fagents$/);
    await page.getByLabel('API key', { exact: true }).fill('hf_wrong');
    await picture('sign-in');
    await page.getByRole('button', { name: 'Sign in' }).click();
    await expectSeen(page.getByText('This API key is not valid.'));
  });

  it('keeps the key out of the address when the page is not alive yet', async () => {
    const visitor = await browser.newContext({ baseURL: platform.dashboardUrl, javaScriptEnabled: false });
    const other = await visitor.newPage();
    const sent: string[] = [];
    other.on('request', (request) => sent.push(`${request.url()} ${request.postData() ?? ''}`));
    await other.goto('/sign-in');
    await other.getByLabel('API key', { exact: true }).fill(platform.apiKey);
    await other.keyboard.press('Enter');
    await other.waitForTimeout(300);
    expect(sent.length).toBeGreaterThan(1);
    expect(sent.join('\n')).not.toContain(platform.apiKey);
    await visitor.close();
  });

  it('takes an API key, and goes on to the page that was asked for', async () => {
    await page.getByLabel('API key', { exact: true }).fill(platform.apiKey);
    await page.keyboard.press('Enter');
    await page.waitForURL('**/agents');
    await expectSeen(page.getByRole('heading', { name: 'Agents' }));
    const cookies = await context.cookies();
    expect(cookies).toMatchObject([{ httpOnly: true, sameSite: 'Strict' }]);
    expect(JSON.stringify(cookies)).not.toContain(platform.apiKey);
  });

  it('takes the one-time link of bin/up once', async () => {
    const link = /http\S+#token=\S+/.exec(await platform.up('--detach'))?.[0] ?? '';
    for (const [works, visitor] of [
      [true, await browser.newContext()],
      [false, await browser.newContext()],
    ] as const) {
      const other = await visitor.newPage();
      await other.goto(link);
      if (works) await expectSeen(other.getByRole('heading', { name: 'Sessions' }));
      else await expectSeen(other.getByText('This link was used or has run out'));
      expect(other.url()).not.toContain('token');
      await visitor.close();
    }
  });

  it('refuses foreign hosts and changes from other sites', async () => {
    const cookie = (await context.cookies()).map(({ name, value }) => `${name}=${value}`).join('; ');
    const post = (headers: Record<string, string>) =>
      fetch(`${platform.dashboardUrl}/api/v1/agents`, { method: 'POST', headers: { cookie, ...headers }, body: '{}' });
    expect((await post({ origin: 'http://evil.example' })).status).toBe(403);
    expect((await post({ origin: 'null' })).status).toBe(403);
    expect((await post({ 'sec-fetch-site': 'cross-site' })).status).toBe(403);
    expect((await post({ origin: platform.dashboardUrl })).status).toBe(400);
    for (const [host, status] of [
      ['evil.example', 403],
      ['dashboard.example:8443', 200],
    ] as const)
      expect((await context.request.get('/agents', { headers: { host } })).status()).toBe(status);
    const policy = (await context.request.get('/agents')).headers()['content-security-policy'] ?? '';
    expect(policy).toMatch(/script-src 'self' 'nonce-\w+' 'strict-dynamic'/);
    expect(policy).toContain("img-src 'self' data:");
    const answer = await context.request.get('/api/v1/agents');
    expect(answer.headers()).toMatchObject({
      'content-security-policy': expect.stringContaining('sandbox'),
      'x-content-type-options': 'nosniff',
    });
  });
});

describe('agents', () => {
  it('are created, changed in versions, and looked at as they were', async () => {
    await page.goto('/agents/new');
    await page.getByLabel('Name', { exact: true }).fill('Tester');
    await expectSeen(page.getByLabel('Model', { exact: true }));
    await page.locator('option', { hasText: 'demo' }).waitFor({ state: 'attached' });
    await page.getByLabel('Instructions', { exact: true }).fill('Be brief.');
    await page.getByLabel('May the agent use bash?').selectOption('always_ask');
    await page.getByLabel('Custom tools', { exact: true }).fill('not json');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    await expectSeen(page.getByText('This is not JSON.'));
    await page
      .getByLabel('Custom tools', { exact: true })
      .fill('[{"type":"custom","name":"weather","description":"The weather","input_schema":{"type":"object"}}]');
    await picture('agent-new');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    await expectSeen(page.getByRole('heading', { name: 'Tester' }));
    await page.getByLabel('Instructions', { exact: true }).fill('Be very brief.');
    await page.getByRole('button', { name: 'Save as a new version' }).click();
    await expectSeen(page.getByText('Saved as version 2.'));
    await expectSeen(page.getByText('Changed instructions'));
    await page.getByRole('button', { name: /^v1/ }).click();
    await expectSeen(page.getByText('This is version 1.'));
    await expect(page.getByLabel('Instructions', { exact: true }).inputValue()).resolves.toBe('Be brief.');
    await picture('agent');
  });

  it('are not saved over what somebody else saved, unless that is wanted', async () => {
    await page.getByRole('button', { name: 'Back to version 2' }).click();
    const id = new URL(page.url()).pathname.split('/').pop() ?? '';
    await page.request.post(`/api/v1/agents/${id}`, { data: { system: 'Theirs.' } });
    await page.getByLabel('Instructions', { exact: true }).fill('Mine.');
    await page.getByRole('button', { name: 'Save as a new version' }).click();
    await page.getByRole('button', { name: 'Save mine' }).click();
    await expectSeen(page.getByText('Saved as version 4.'));
    await expectGone(page.getByRole('button', { name: 'Save mine' }));
    const saved = await page.request.get(`/api/v1/agents/${id}`);
    expect(await saved.json()).toMatchObject({ version: 4, system: 'Mine.' });
  });
});

describe('a chat', () => {
  it('runs a tool after it was allowed, and shows its output folded', async () => {
    await page.goto('/sessions');
    await expectSeen(page.getByText('No sessions yet'));
    await picture('sessions-empty');
    await page.getByRole('button', { name: 'New session' }).first().click();
    await page.getByLabel('First message').fill('RUN[echo from the $((40+2))th sandbox]');
    await picture('start');
    await page.getByRole('button', { name: 'Start', exact: true }).click();
    await page.waitForURL('**/sessions/sesn_*');
    await expectSeen(page.getByText('Allow this call?'));
    await picture('chat-approval');
    await expectSeen(page.getByRole('link', { name: 'Sessions 1 wait for you' }));
    await page.getByRole('button', { name: 'Allow', exact: true }).press('Enter');
    await expectSeen(page.getByLabel('done'));
    // Where the form was there is nothing now: the keyboard goes on in the message box.
    await expectSeen(page.locator('#composer:focus'));
    await page.getByText('bash', { exact: true }).click();
    await expectSeen(page.getByText('from the 42th sandbox', { exact: true }));
    await picture('chat-tool');
  });

  it('shows a denied call, and answers a custom tool', async () => {
    await say('RUN[rm -rf /]');
    await page.getByLabel('Why bash is denied').fill('far too much');
    await page.getByRole('button', { name: 'Deny' }).click();
    await expectSeen(page.getByLabel('denied'));
    await say('ASK[weather]');
    await page.getByLabel('weather is a tool of the client').fill('sunny, 21 degrees');
    await page.getByRole('button', { name: 'Send the result' }).click();
    await expectSeen(page.getByText('sunny, 21 degrees').first());
    await expectSeen(page.getByText('Idle', { exact: true }));
  });

  it('streams, and after a reload and a cut connection goes on with nothing lost or doubled', async () => {
    await say('SLOW[60]');
    await expectSeen(page.getByText(/word 5\b|w5\b|5/).first());
    await expectSeen(log().locator('[aria-busy=true]'));
    await picture('chat-streaming');
    await page.reload();
    await expectSeen(log().locator('[aria-busy=true]'));
    platform.kill('gateway-api');
    await expectSeen(page.getByText('Reconnecting…'));
    await expectSeen(page.getByText('Idle', { exact: true }));
    await expectGone(page.getByText('Reconnecting…'));
    const list = await fetch(`${platform.apiUrl}/v1/sessions/${sessionId()}/events?types[]=agent.message`, {
      headers: { 'x-api-key': platform.apiKey },
    });
    const { data } = (await list.json()) as { data: { content: { text: string }[] }[] };
    const articles = await log().getByRole('article', { name: 'agent' }).allInnerTexts();
    const words = (text: string) => text.split(/\s+/).filter((word) => word !== '');
    const shown = articles.map((article) =>
      words(article)
        .join(' ')
        .replace(/ \d\d:\d\d [AP]M$/, ''),
    );
    expect(shown).toEqual(data.map((event) => words(event.content.map((block) => block.text).join(' ')).join(' ')));
  });

  it('queues messages behind a running turn, and interrupts', async () => {
    await say('SLOW[200]');
    await expectSeen(page.getByRole('button', { name: 'Interrupt' }));
    await say('and then this');
    await expectSeen(page.getByText('queued', { exact: true }));
    await picture('chat-queued');
    // Who reads further up is left there, and told that there is more.
    await log().evaluate((node) => node.parentElement?.scrollTo(0, 0));
    await expectSeen(page.getByRole('button', { name: 'Go to the end' }));
    await page.waitForTimeout(400);
    expect(await log().evaluate((node) => node.parentElement?.scrollTop)).toBe(0);
    await page.getByRole('button', { name: 'Go to the end' }).click();
    await expectGone(page.getByRole('button', { name: 'Go to the end' }));
    await page.getByLabel('Message', { exact: true }).press('Escape');
    await expectSeen(page.getByText('Interrupted', { exact: true }));
    await expectGone(page.getByText('queued', { exact: true }));
    await expectSeen(page.getByText('Idle', { exact: true }));
  });

  it('never makes HTML of what is said', async () => {
    await say(
      '<img src=x onerror="document.title=1"><b id=bold>x</b> [link](javascript:alert(1)) ![i](http://evil.example/x.png)',
    );
    await expectSeen(page.getByText('Idle', { exact: true }));
    await page.waitForTimeout(300);
    expect(await log().locator('img, #bold, script, iframe').count()).toBe(0);
    const targets = await log()
      .locator('a')
      .evaluateAll((links) => links.map((link) => link.getAttribute('href')));
    expect(targets.filter((href) => href?.startsWith('javascript'))).toEqual([]);
  });

  it('shows an error of the model', async () => {
    await say('ERR[400]');
    await expectSeen(log().getByRole('alert'));
    await picture('chat-error');
  });

  it('gives its connection back while nobody looks, and then goes on', async () => {
    const look = (state: 'hidden' | 'visible') =>
      page.evaluate((value) => {
        Object.defineProperty(document, 'visibilityState', { value, configurable: true });
        Object.defineProperty(document, 'hidden', { value: value === 'hidden', configurable: true });
        document.dispatchEvent(new Event('visibilitychange'));
      }, state);
    const cut = page.waitForEvent('requestfailed', (request) => request.url().includes('/events/stream'));
    await look('hidden');
    await cut;
    await sendFromElsewhere('said while nobody looked');
    expect(await page.getByText('said while nobody looked').count()).toBe(0);
    await look('visible');
    await expectSeen(page.getByText('You said: said while nobody looked'));
  });

  it('notices that the network went, and goes on when it is back', async () => {
    await context.setOffline(true);
    await expectSeen(page.getByText('Reconnecting…'));
    await sendFromElsewhere('said while we were away');
    await context.setOffline(false);
    await expectSeen(page.getByText('You said: said while we were away'));
    await expectGone(page.getByText('Reconnecting…'));
  });

  it('shows the same in two tabs, and takes a word from either', async () => {
    const other = await context.newPage();
    await other.goto(page.url());
    await say('RUN[echo both]');
    await other.getByRole('button', { name: 'Allow', exact: true }).click();
    await expectGone(page.getByText('Allow this call?'));
    for (const tab of [page, other]) await expectSeen(tab.getByText('The last result was: both'));
    await other.close();
  });

  it('says that the API is away, and opens when it is back', async () => {
    await page.route('**/api/v1/sessions/sesn_*', (route) => route.abort());
    await page.reload();
    await expectSeen(page.getByText('The API cannot be reached. Trying again…'));
    await page.unroute('**/api/v1/sessions/sesn_*');
    await expectSeen(log());
    await page.goto('/sessions/sesn_00000000000000000000000000000000');
    await expectSeen(page.getByText('There is no session'));
    await page.goBack();
    await expectSeen(log());
  });

  it('is renamed, and driven by the commands that it shows', async () => {
    await page.getByRole('button', { name: 'More actions' }).click();
    await page.getByRole('menuitem', { name: 'Rename' }).click();
    await page.getByLabel('Title').fill('Renamed here');
    await page.keyboard.press('Enter');
    await expectSeen(page.getByRole('heading', { name: 'Renamed here' }));
    await page.getByRole('button', { name: 'More actions' }).click();
    await page.getByRole('menuitem', { name: 'Details and API' }).click();
    await picture('details');
    const shown = async (language: string): Promise<string> => {
      await page.getByRole('tab', { name: language }).click();
      return (await page.getByRole('tabpanel').locator('pre').textContent()) ?? '';
    };
    const env = { ...process.env, HOLDFAST_API_KEY: platform.apiKey };
    const run = promisify(execFile);
    const curl = (await shown('curl')).split('# Follow it')[0] ?? '';
    expect(JSON.parse((await run('bash', ['-c', curl], { env })).stdout)).toMatchObject({
      data: [{ type: 'user.message', processed_at: null }],
    });
    await expectSeen(page.getByText('You said: Hello').first());
    const typescript = ['--input-type=module-typescript', '--eval', await shown('TypeScript')];
    expect((await run(process.execPath, typescript, { env, timeout: 20_000 })).stdout).toContain('You said: Hello');
    await page.keyboard.press('Escape');
    await expectGone(page.getByRole('dialog'));
  });

  it('has a timeline with every event of the log, also those that come', async () => {
    await page.getByRole('link', { name: 'Timeline' }).click();
    await expectSeen(page.getByText('session.created', { exact: true }).first());
    await page.getByText('agent.tool_result').first().click();
    await page.getByLabel('Filter events').fill('agent.tool_result');
    await expectGone(page.getByText('session.created', { exact: true }).first());
    await picture('timeline');
    await page.getByLabel('Filter events').fill('said after the page was there');
    await sendFromElsewhere('said after the page was there');
    await expectSeen(page.getByText('agent.message', { exact: true }));
    const [download] = await Promise.all([
      page.waitForEvent('download'),
      page.getByRole('button', { name: 'Download' }).click(),
    ]);
    const lines = readFileSync(await download.path(), 'utf8')
      .trimEnd()
      .split('\n');
    expect(lines.map((line) => (JSON.parse(line) as { version: number }).version)).toEqual(lines.map((_, i) => i + 1));
    await page.getByRole('link', { name: 'Chat' }).click();
  });

  it('is archived', async () => {
    await page.getByRole('button', { name: 'More actions' }).click();
    await page.getByRole('menuitem', { name: 'Archive' }).click();
    await page.getByRole('button', { name: 'Archive' }).click();
    await expectSeen(page.getByText('takes no more messages').first());
  });
});

describe('the other pages', () => {
  it('list sessions with their status, by view, agent and text, and go back through that', async () => {
    await page.goto('/sessions');
    await expectSeen(page.getByText('No sessions yet'));
    await page.getByRole('button', { name: 'Archived' }).click();
    const row = page.getByRole('listitem').filter({ hasText: 'Renamed here' });
    await expectSeen(row.getByText('Archived', { exact: true }));
    await picture('sessions');
    await page.keyboard.press('/');
    await page.keyboard.type('no such title');
    await expectSeen(page.getByText('No session matches this filter'));
    await page.getByRole('searchbox').fill('RENAMED');
    await expectSeen(row);
    await page.getByLabel('Agent', { exact: true }).selectOption('Tester');
    await page.waitForURL(/view=archived&q=RENAMED&agent=agent_/);
    await expectSeen(row);
    await page.getByRole('button', { name: 'Needs you' }).click();
    await expectSeen(page.getByText('No session matches this filter'));
    await page.goBack();
    await expectSeen(row);
    await page.reload();
    await expectSeen(row);
    await expect(page.getByRole('searchbox').inputValue()).resolves.toBe('RENAMED');
  });

  it('show status', async () => {
    await page.goto('/status');
    await expectSeen(page.getByText('All services report'));
    for (const name of ['gateway-api', 'sandbox', 'session'])
      await expectSeen(page.getByRole('listitem').filter({ hasText: name }));
    await picture('status');
  });

  it('are as dark as they were chosen to be', async () => {
    const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await paper();
    await page.getByRole('button', { name: 'Appearance' }).click();
    await page.getByRole('menuitemradio', { name: 'Dark' }).click();
    expect(await paper()).not.toBe(light);
    await page.reload();
    expect(await paper()).not.toBe(light);
    await picture('status-dark');
    await page.getByRole('button', { name: 'Appearance' }).click();
    await page.getByRole('menuitemradio', { name: 'As the system' }).click();
    expect(await paper()).toBe(light);
  });

  it('fit a phone, and are reached from its menu', async () => {
    await page.setViewportSize({ width: 390, height: 800 });
    const agent = await page.request.get('/api/v1/agents');
    const { data } = (await agent.json()) as { data: { id: string }[] };
    for (const place of ['/sessions', '/agents', '/agents/new', `/agents/${data[0]?.id}`, '/environments', '/keys']) {
      await page.goto(place);
      await expectSeen(page.getByRole('heading', { level: 1 }));
      const [wanted, given] = await page
        .getByRole('main')
        .evaluate((main) => [main.scrollWidth, Math.min(main.clientWidth, innerWidth)]);
      expect([place, wanted]).toEqual([place, given]);
      await picture(`phone${place.replaceAll('/', '-')}`);
    }
    await page.getByRole('button', { name: 'Menu' }).click();
    await page.getByRole('menuitem', { name: 'Status' }).click();
    await page.waitForURL('**/status');
    await page.setViewportSize({ width: 1280, height: 800 });
  });

  it('make environments', async () => {
    await page.goto('/environments');
    await page.getByRole('button', { name: 'New environment' }).click();
    await page.getByLabel('Name', { exact: true }).fill('offline');
    await page.getByLabel('Allowed hosts').fill('example.com\n*.example.org');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    await expectSeen(page.getByText('example.com, *.example.org'));
    await picture('environments');
  });

  it('make keys, show them once, and end their sign-ins when they are revoked', async () => {
    await page.goto('/keys');
    await page.getByRole('button', { name: 'New key' }).click();
    await page.getByLabel('Name', { exact: true }).fill('second');
    await page.getByRole('button', { name: 'Create', exact: true }).click();
    const key = (await page.getByText(/^hf_[\w-]{20,}$/).textContent())?.trim() ?? '';
    await picture('key');
    await page.getByRole('button', { name: 'Done' }).click();
    expect(await page.content()).not.toContain(key);
    const other = await (await browser.newContext({ baseURL: platform.dashboardUrl })).newPage();
    await other.goto('/sign-in');
    await other.getByLabel('API key', { exact: true }).fill(key);
    await other.keyboard.press('Enter');
    await expectSeen(other.getByRole('heading', { name: 'Sessions' }));
    const row = page.getByRole('listitem').filter({ hasText: 'second' });
    await row.getByRole('button', { name: 'Revoke' }).click();
    await page.getByRole('alertdialog').getByRole('button', { name: 'Revoke' }).click();
    await expectSeen(row.getByText('Revoked'));
    await other.waitForURL(/sign-in\?next=/);
    await other.context().close();
  });

  it('sign out', async () => {
    await page.getByRole('button', { name: 'Sign out' }).click();
    await page.waitForURL('**/sign-in');
    await page.goto('/sessions');
    expect(new URL(page.url()).pathname).toBe('/sign-in');
  });

  it('start a session by the short form on this port, with a key, and say what is wrong with it', async () => {
    const agents = await fetch(`${platform.apiUrl}/v1/agents`, { headers: { 'x-api-key': platform.apiKey } });
    const agent = ((await agents.json()) as { data: { id: string }[] }).data[0]?.id;
    const start = async (body: string, headers: Record<string, string>) => {
      const answer = await fetch(`${platform.dashboardUrl}/api/sessions`, { method: 'POST', headers, body });
      return [answer.status, await answer.json()] as [number, { id: string; error: { message: string } }];
    };
    const key = { authorization: `Bearer ${platform.apiKey}`, 'content-type': 'application/json' };
    const [status, made] = await start(JSON.stringify({ agent_id: agent }), key);
    expect([status, made]).toMatchObject([200, { type: 'session', status: 'idle' }]);
    for (const [body, headers, refused] of [
      ['{}', key, [400, { error: { message: expect.stringContaining('agent_id') } }]],
      ['{', key, [400, { error: { type: 'invalid_request_error' } }]],
      ['{"agent_id":"agent_none"}', key, [404, { error: { type: 'not_found_error' } }]],
      ['{}', { 'x-api-key': 'hf_wrong' }, [401, { error: { type: 'authentication_error' } }]],
      ['{}', {}, [401, { error: { message: expect.stringContaining('API key') } }]],
    ] as const)
      expect(await start(body, headers)).toMatchObject(refused);
    const elsewhere = await fetch(`${platform.dashboardUrl}/api/elsewhere`, { method: 'PUT', headers: key });
    expect([elsewhere.status, await elsewhere.json()]).toMatchObject([404, { error: { type: 'not_found_error' } }]);
    // A session that says nothing yet opens its stream all the same.
    const stream = await fetch(`${platform.dashboardUrl}/api/v1/sessions/${made.id}/events/stream`, {
      headers: key,
      signal: AbortSignal.timeout(5_000),
    });
    expect(stream.headers.get('content-type')).toMatch('text/event-stream');
    await stream.body?.cancel();
  });

  it('had no fault in the browser', () => {
    expect(faults).toEqual([]);
  });
});
