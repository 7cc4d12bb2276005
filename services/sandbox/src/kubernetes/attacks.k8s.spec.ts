import { createPrivateKey, createPublicKey, sign } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { HUB_AUDIENCE } from '@holdfast/contracts';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { AuthorizationV1Api } from '@kubernetes/client-node';
import { existingCluster, loadBed } from '../../../../k8s/testbed/src/settings.ts';
import { Dialler, hello } from '../test/dialler.ts';
import { SERVICE_ACCOUNT } from './names.ts';
import { type ClusteredPlatform, startOnCluster, Tenant, until } from './test/clustered-platform.ts';

/** Two workspaces that name everything alike. */
const KEYS = { environment: 'same', context: { context_key: 'team/one' } };
const SECOND = 'wrkspc_second';
const FIRST = 'wrkspc_default';

let platform: ClusteredPlatform;
let first: Tenant;
let second: Tenant;
let environments: readonly string[];
beforeAll(async () => {
  platform = await startOnCluster({ SANDBOX_MEMORY_BYTES: String(300 * 1024 ** 2) });
  first = platform.first;
  second = new Tenant(platform, await platform.secondWorkspace());
  environments = await Promise.all(
    [first, second].map((tenant) => tenant.environment(KEYS.environment, { workspace: 'ephemeral' })),
  );
}, 240_000);
afterAll(async () => {
  await platform.stop();
}, 120_000);

/** Why links were refused, by the session's own sandbox; how often each. */
async function refusals(tenant: Tenant, session: string): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  for (const event of await tenant.sandboxEvents(session, 'sandbox.link_refused'))
    counts[String(event['reason'])] = (counts[String(event['reason'])] ?? 0) + 1;
  return counts;
}

/** What somebody hears who dials the hub from outside of every pod, until it ends the connection. */
async function dial(changes: Parameters<typeof hello>[0]): Promise<string[]> {
  const { host, port } = platform.hub;
  const dialler = new Dialler(`wss://${host}:${port}/runner-link`, hello(changes), { rejectUnauthorized: false });
  await dialler.closed;
  return dialler.heard.map(({ type }) => type);
}

/** Dials the hub in several ways; prints by name what it heard until the hub ended it. */
const DIAL = `
import { generateKeyPairSync, sign } from 'node:crypto';
import { readFileSync } from 'node:fs';
const [hub, pod, ...modes] = process.argv.slice(2);
const token = readFileSync('/var/run/secrets/holdfast/token', 'utf8').trim();
const { publicKey, privateKey } = generateKeyPairSync('ed25519');
const key = publicKey.export({ type: 'spki', format: 'der' }).toString('base64');
const right = (nonce) => ({
  type: 'hello', publicKey: key, signature: sign(null, Buffer.from(nonce), privateKey).toString('base64'),
  token, journalId: 'j', pod, channel: 'calls',
});
const ways = {
  'second key': right,
  'second key, no token': (nonce) => ({ ...right(nonce), token: null }),
  'second key, pod unsaid': (nonce) => ({ ...right(nonce), pod: null }),
  'garbage signature': (nonce) => ({ ...right(nonce), signature: 'AAAA' }),
  'garbage key': (nonce) => ({ ...right(nonce), publicKey: 'AAAA' }),
  'garbage token': (nonce) => ({ ...right(nonce), token: token.slice(0, -8) + 'AAAAAAAA', pod: null }),
  'egress': (nonce) => ({ ...right(nonce), channel: 'egress' }),
  'a result instead of hello': () => ({ type: 'done', callId: 'sevt_other', outcome: 'completed', isError: false, text: 'forged', cut: false }),
};
const dial = (way) => new Promise((resolve) => {
  const heard = [];
  const socket = new WebSocket('wss://' + hub + '/runner-link');
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    heard.push(message.type);
    if (message.type === 'challenge') socket.send(JSON.stringify(ways[way](message.nonce)));
  };
  socket.onclose = socket.onerror = () => resolve(heard);
});
const found = {};
for (const way of modes.length === 0 ? Object.keys(ways) : modes) found[way] = await dial(way);
console.log(JSON.stringify(found));
`;

describe('from inside a pod', () => {
  let session: string;
  let podUid: string;
  let pod: string;
  const namespace = () => platform.namespaceOf(FIRST);
  const hub = () => `${platform.hub.host}:${platform.hub.port}`;

  beforeAll(async () => {
    session = await first.session({ environment_id: environments[0] });
    await first.run(session, 'echo up');
    pod = (await first.sandbox(session)).pod ?? '';
    podUid = (await platform.admin.get('Pod', pod, namespace()))?.metadata.uid ?? '';
  }, 60_000);

  it('no second link is to be had, with this pod’s token or without it, and each way is recorded', async () => {
    const { text, isError } = await first.node(session, DIAL, hub(), podUid);
    expect({ text, isError }).toMatchObject({ isError: false });
    const heard = JSON.parse(text) as Record<string, string[]>;
    expect(Object.keys(heard)).toHaveLength(8);
    expect(new Set(Object.values(heard).map((types) => types.join()))).toEqual(new Set(['challenge']));
    const recorded = await refusals(first, session);
    for (const reason of [
      'another key is bound to this pod',
      'its signature is wrong',
      'its key cannot be read',
      'it did not say hello',
    ])
      expect(recorded).toHaveProperty([reason]);
    // The session's own link has not noticed any of it.
    expect(await first.run(session, 'echo still mine')).toEqual({ text: 'still mine\n', isError: false });
    expect(await first.sandboxEvents(session, 'sandbox.lost')).toEqual([]);
  }, 90_000);

  it('a flood of dials is refused, and told a few times', async () => {
    const { text } = await first.node(
      session,
      `${DIAL.slice(0, DIAL.indexOf('const found'))}
      const all = [];
      ways.other = (nonce) => ({ ...right(nonce), token: made(), pod: null });
      let length = 0;
      // What an API server says of them differs from one to the next.
      const made = () => 'A'.repeat(++length) + '!.' + 'B'.repeat(length) + '.' + 'C'.repeat(length % 7);
      for (let n = 0; n < 60; n++) all.push((await dial(['garbage signature', 'second key, no token', 'other'][n % 3])).join());
      console.log(all.length, [...new Set(all)].join(' '));`,
      hub(),
      podUid,
    );
    expect(text).toBe('60 challenge\n');
    const recorded = await refusals(first, session);
    expect(Object.keys(recorded).length).toBeLessThanOrEqual(6);
    expect(Math.max(...Object.values(recorded))).toBeLessThanOrEqual(6);
  }, 90_000);

  it('the runner that holds the key lets nobody look into it', async () => {
    const { text } = await first.run(
      session,
      `r=$(pgrep -f '[r]unner.mjs$' | sed -n 2p); for what in environ maps mem auxv; do head -c1 /proc/$r/$what >/dev/null 2>&1 && echo READ $what; done; for what in fd cwd root map_files; do ls /proc/$r/$what/ >/dev/null 2>&1 && echo LISTED $what; done; ls -l /opt/holdfast/node | cut -c1-10; cat /opt/holdfast/node >/dev/null 2>&1 && echo COPIED; env | grep -cE 'HOLDFAST_(HUB|TOKEN|POD)'; tr '\\0' ' ' < /proc/$r/cmdline | grep -c runner.mjs`,
    );
    expect(text).toBe('---x--x--x\n0\n1\n');
  }, 60_000);

  it('its token is worth nothing at the API server or the kubelet, and there is no other', async () => {
    const server = platform.config.getCurrentCluster()?.server ?? '';
    const node = (await platform.admin.get('Node', (await first.sandbox(session)).node ?? ''))?.status?.addresses?.find(
      ({ type }) => type === 'InternalIP',
    )?.address;
    const { text } = await first.run(
      session,
      `ask() { curl -sk -m 5 --noproxy '*' -o /dev/null -w '%{http_code}\\n' "$@"; }; token="Authorization: Bearer $(cat /var/run/secrets/holdfast/token)"; ask -H "$token" ${server}/api/v1/namespaces; ask -H "$token" ${server}/api/v1/namespaces/${namespace()}/secrets; ask -H "$token" ${server}/apis/authorization.k8s.io/v1/selfsubjectaccessreviews; ask ${server}/api/v1/namespaces/${namespace()}/pods; ask -H "$token" https://${node}:10250/pods; ls /var/run/secrets /run/secrets`,
    );
    const [own, secrets, review, anonymous, kubelet, ...files] = text.trim().split('\n');
    expect([own, secrets, review, kubelet]).toEqual(['401', '401', '401', '401']);
    expect(anonymous).toMatch(/^40[13]$/);
    expect(files).not.toContain('kubernetes.io');
  }, 60_000);

  it('there is a policy that leads to the hub alone; whether it is enforced is the network plugin’s', async () => {
    const policies = await platform.admin.list('NetworkPolicy', { namespace: namespace() });
    const egress = [
      { to: [{ ipBlock: { cidr: `${platform.hub.host}/32` } }], ports: [{ protocol: 'TCP', port: platform.hub.port }] },
    ];
    expect(policies.find(({ metadata }) => metadata.name === 'hub-only')?.spec).toEqual({
      podSelector: {},
      policyTypes: ['Ingress', 'Egress'],
      egress,
    });
    const labels = (await platform.admin.get('Pod', pod, namespace()))?.metadata.labels ?? {};
    const own = policies.filter(({ spec }) => {
      const wanted = Object.entries(spec?.podSelector?.matchLabels ?? {});
      return wanted.length > 0 && wanted.every(([name, value]) => labels[name] === value);
    });
    expect(own.map(({ spec }) => ({ egress: spec?.egress, ingress: spec?.ingress ?? [] }))).toEqual([
      { egress, ingress: [] },
    ]);
  });
});

describe('with a token from elsewhere', () => {
  const tokenFor = async (namespace: string, pod: { name: string; uid: string }, audiences: string[]) =>
    (
      await platform.core.createNamespacedServiceAccountToken({
        name: SERVICE_ACCOUNT,
        namespace,
        body: { spec: { audiences, boundObjectRef: { apiVersion: 'v1', kind: 'Pod', ...pod } } },
      })
    ).status?.token ?? '';
  const placeOf = async (tenant: Tenant, workspace: string, session: string) => {
    const namespace = platform.namespaceOf(workspace);
    const name = (await tenant.sandbox(session)).pod ?? '';
    return { namespace, pod: { name, uid: (await platform.admin.get('Pod', name, namespace))?.metadata.uid ?? '' } };
  };

  let mine: string;
  let theirs: string;
  beforeAll(async () => {
    [mine, theirs] = (await Promise.all(
      [first, second].map((tenant, n) => tenant.session({ environment_id: environments[n] })),
    )) as [string, string];
    await Promise.all([first.run(mine, 'echo up'), second.run(theirs, 'echo up')]);
  }, 60_000);

  it('a pod’s token that was read out binds no second key, wherever it is said', async () => {
    const token = (await first.run(mine, 'cat /var/run/secrets/holdfast/token')).text.trim();
    const { pod } = await placeOf(first, FIRST, mine);
    expect(token).toMatch(/^ey/);
    expect(await dial({ token, pod: pod.uid })).toEqual(['challenge']);
    expect(await refusals(first, mine)).toEqual({ 'another key is bound to this pod': 1 });
  }, 60_000);

  it('another workspace’s pod is not this one', async () => {
    const token = (await second.run(theirs, 'cat /var/run/secrets/holdfast/token')).text.trim();
    const { pod } = await placeOf(first, FIRST, mine);
    expect(await dial({ token, pod: pod.uid })).toEqual(['challenge']);
    expect(await refusals(second, theirs)).toEqual({ 'its token is another pod’s': 1 });
    expect(await refusals(first, mine)).toEqual({ 'another key is bound to this pod': 1 });
  }, 60_000);

  it.each([
    ['another audience', ['another']],
    ['the API server’s audience', []],
  ])('a token for %s is refused', async (_, audiences) => {
    const before = await count();
    const { namespace, pod } = await placeOf(first, FIRST, mine);
    const token = await tokenFor(namespace, pod, audiences);
    expect(await dial({ token, pod: pod.uid })).toEqual(['challenge']);
    await told(before, /audience/);
  });

  it('a pod of a namespace that is not the platform’s is nobody, whatever its account is called', async () => {
    const namespace = `foreign-${platform.installation}`;
    await platform.core.createNamespace({ body: { metadata: { name: namespace } } });
    try {
      await platform.core.createNamespacedServiceAccount({ namespace, body: { metadata: { name: SERVICE_ACCOUNT } } });
      const { metadata } = await platform.core.createNamespacedPod({
        namespace,
        body: {
          metadata: { name: 'stranger' },
          spec: {
            serviceAccountName: SERVICE_ACCOUNT,
            nodeSelector: { 'holdfast.dev/none': 'such' },
            containers: [{ name: 'x', image: 'none.invalid/x' }],
          },
        },
      });
      const before = await count();
      const stranger = { name: 'stranger', uid: metadata?.uid ?? '' };
      const token = await tokenFor(namespace, stranger, [HUB_AUDIENCE]);
      const victim = await placeOf(first, FIRST, mine);
      for (const pod of [stranger.uid, victim.pod.uid, null]) expect(await dial({ token, pod })).toEqual(['challenge']);
      await told(before, /another namespace or account/);
    } finally {
      await platform.core.deleteNamespace({ name: namespace });
    }
  });

  // It takes the key that the cluster signs with.
  if (existingCluster() === null)
    it('an expired token is refused', async () => {
      const before = await count();
      const { namespace, pod } = await placeOf(first, FIRST, mine);
      const [head = '', body = ''] = (await tokenFor(namespace, pod, [HUB_AUDIENCE])).split('.');
      const claims = JSON.parse(Buffer.from(body, 'base64url').toString()) as { iat: number; nbf: number; exp: number };
      const signed = (shiftSeconds: number): string => {
        const { iat, nbf, exp } = claims;
        const moved = { ...claims, iat: iat + shiftSeconds, nbf: nbf + shiftSeconds, exp: exp + shiftSeconds };
        const text = `${head}.${Buffer.from(JSON.stringify(moved)).toString('base64url')}`;
        const key = createPrivateKey(readFileSync(join(loadBed().stateDir, 'pki', 'service-accounts.key')));
        const how = createPublicKey(key).asymmetricKeyType === 'ec' ? { key, dsaEncoding: 'ieee-p1363' as const } : key;
        return `${text}.${sign('sha256', Buffer.from(text), how).toString('base64url')}`;
      };
      // The same signature over times that hold is good: it is the time that is refused.
      expect(await platform.admin.reviewToken(signed(0), HUB_AUDIENCE)).toMatchObject({ podUid: pod.uid });
      expect(await dial({ token: signed(-86_400), pod: pod.uid })).toEqual(['challenge']);
      await told(before, /expired/);
    });

  const lines = () =>
    platform
      .log('sandbox')
      .split('\n')
      .filter((line) => line.includes('a link was refused'));
  const count = () => Promise.resolve(lines().length);
  /** Said by nobody who is known, it is on no sandbox's stream: the service's log and figures have it. */
  const told = (before: number, reason: RegExp) =>
    until(
      'the refusal is told',
      () =>
        lines()
          .slice(before)
          .some((line) => reason.test(line))
          ? true
          : null,
      5_000,
    );
});

describe('two workspaces with the same names for everything', () => {
  it('never meet', async () => {
    const tenants = [first, second] as const;
    const workspaces = [FIRST, SECOND] as const;
    const sessions = await Promise.all(
      tenants.map((tenant, n) => tenant.session({ environment_id: environments[n], ...KEYS.context })),
    );
    await Promise.all(
      tenants.map((tenant, n) =>
        tenant.run(sessions[n] ?? '', `echo secret-of-${n} > secret.txt; echo ${n} > ~/own.txt`),
      ),
    );
    const sandboxes = await Promise.all(tenants.map((tenant, n) => tenant.sandbox(sessions[n] ?? '')));
    for (const [n, tenant] of tenants.entries()) {
      const [own, other] = n === 0 ? sandboxes : sandboxes.toReversed();
      const namespace = platform.namespaceOf(workspaces[n] ?? '');
      expect(own?.namespace).toBe(namespace);
      expect(other?.namespace).not.toBe(namespace);
      const found = await tenant.run(
        sessions[n] ?? '',
        'cat secret.txt; grep -rl secret-of / --include=secret.txt 2>/dev/null; true',
      );
      expect(found.text).toBe(`secret-of-${n}\n/workspace/secret.txt\n`);
      for (const path of ['', '/timeline'])
        expect((await tenant.client.api(`/v1/x/sandboxes/${other?.id}${path}`)).status).toBe(404);
      const listed = await tenant.client.json<{ data: { id: string; session_id: string }[] }>(
        '/v1/x/sandboxes?limit=100',
      );
      expect(listed.data.map(({ id }) => id)).toContain(own?.id);
      expect(listed.data.map(({ id }) => id)).not.toContain(other?.id);
      const filtered = await tenant.client.api(`/v1/x/sandboxes?session_id=${sessions[1 - n]}`);
      expect([200, 404]).toContain(filtered.status);
      if (filtered.ok) expect(((await filtered.json()) as { data: unknown[] }).data).toEqual([]);
      const objects = [
        ...(await platform.admin.list('SandboxClaim', { namespace })),
        ...(await platform.admin.list('PersistentVolumeClaim', { namespace })),
        ...(await platform.admin.list('Pod', { namespace })),
      ];
      expect(objects.length).toBeGreaterThan(2);
      const owners = objects.map(({ metadata }) => metadata.annotations?.['holdfast.dev/workspace-id']);
      expect(new Set(owners)).toEqual(new Set([workspaces[n]]));
    }
  }, 120_000);
});

describe('the sandbox service itself', () => {
  const may = async (
    verb: string,
    resource: string,
    more: { subresource?: string; group?: string; namespace?: string },
  ) =>
    (
      await platform.serviceConfig.makeApiClient(AuthorizationV1Api).createSelfSubjectAccessReview({
        body: { spec: { resourceAttributes: { verb, resource, ...more } } },
      })
    ).status?.allowed;

  it.each<[string, string, { subresource?: string; group?: string }]>([
    ['create', 'pods', {}],
    ['update', 'pods', {}],
    ['patch', 'pods', {}],
    ['create', 'pods', { subresource: 'exec' }],
    ['get', 'pods', { subresource: 'exec' }],
    ['create', 'pods', { subresource: 'attach' }],
    ['create', 'pods', { subresource: 'portforward' }],
    ['get', 'pods', { subresource: 'log' }],
    ['patch', 'pods', { subresource: 'ephemeralcontainers' }],
    ['get', 'secrets', {}],
    ['list', 'secrets', {}],
    ['create', 'secrets', {}],
    ['get', 'configmaps', {}],
    ['create', 'serviceaccounts', { subresource: 'token' }],
    ['delete', 'namespaces', {}],
    ['delete', 'resourcequotas', {}],
    ['delete', 'networkpolicies', { group: 'networking.k8s.io' }],
    ['create', 'sandboxes', { group: 'agents.x-k8s.io' }],
    ['delete', 'sandboxes', { group: 'agents.x-k8s.io' }],
    ['patch', 'nodes', {}],
    ['get', 'nodes', { subresource: 'proxy' }],
    ['create', 'rolebindings', { group: 'rbac.authorization.k8s.io' }],
    ['escalate', 'clusterroles', { group: 'rbac.authorization.k8s.io' }],
    ['impersonate', 'users', {}],
    ['create', 'deployments', { group: 'apps' }],
    ['create', 'jobs', { group: 'batch' }],
    ['create', 'certificatesigningrequests', { group: 'certificates.k8s.io' }],
    ['patch', 'validatingadmissionpolicies', { group: 'admissionregistration.k8s.io' }],
  ])('may not %s %s %j, in its own namespaces or elsewhere', async (verb, resource, more) => {
    for (const namespace of [platform.namespaceOf(FIRST), 'kube-system', undefined])
      expect(await may(verb, resource, { ...more, ...(namespace === undefined ? {} : { namespace }) })).toBe(false);
  });

  it('may do what it does, which is how the answers above are known to be answers', async () => {
    const extensions = { group: 'extensions.agents.x-k8s.io', namespace: platform.namespaceOf(FIRST) };
    expect(await may('create', 'sandboxclaims', extensions)).toBe(true);
    expect(await may('delete', 'pods', { namespace: platform.namespaceOf(FIRST) })).toBe(true);
  });
});
