/**
 * Routes of the wire contract that are not built yet, by the name a refusal gives. Answering them as unknown would send
 * a caller to look for a mistake in the address.
 */
export const NOT_BUILT: readonly { readonly name: string; readonly paths: readonly string[] }[] = [
  { name: 'vaults', paths: ['/v1/vaults', '/v1/vaults/*'] },
  { name: 'skills', paths: ['/v1/skills', '/v1/skills/*'] },
  { name: 'memory stores', paths: ['/v1/memory_stores', '/v1/memory_stores/*'] },
  {
    name: 'deployments',
    paths: ['/v1/deployments', '/v1/deployments/*', '/v1/deployment_runs', '/v1/deployment_runs/*'],
  },
  { name: 'archiving a thread', paths: ['/v1/sessions/:id/threads/:thread/archive'] },
  { name: 'the organization API', paths: ['/v1/organizations/*'] },
  { name: 'dreams', paths: ['/v1/dreams', '/v1/dreams/*'] },
  { name: 'tunnels', paths: ['/v1/tunnels', '/v1/tunnels/*'] },
  { name: 'user profiles', paths: ['/v1/user_profiles', '/v1/user_profiles/*'] },
  { name: 'the Messages API', paths: ['/v1/messages', '/v1/messages/*'] },
];
/** What of the routes that are there is not built yet. */
export const NOT_BUILT_FIELDS = [
  'web_search',
  'resources of other types than file',
  'credentials of MCP servers',
  'multiagent',
  'environment packages',
  'budgets',
  'outcomes',
  'threads other than the primary one',
] as const;
