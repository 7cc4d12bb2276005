import {
  AppError,
  agentResource,
  createAgentBody,
  createEnvironmentBody,
  deleted,
  environmentResource,
  ID_PREFIXES,
  type IdKind,
  isId,
  LIMITS,
  type Model,
  modelResource,
  newId,
  pageOf,
  updateAgentBody,
  updateEnvironmentBody,
} from '@holdfast/contracts';
import { z } from 'zod';
import type { CatalogueReader } from '../data/catalogue.reader.ts';
import type { ModelCatalogue } from '../data/model.catalogue.ts';
import type { Commands, Exchange } from '../http/exchange.ts';
import type { Query } from '../http/query.ts';
import { type Operation, operation } from './operation.ts';

const modelList = z.strictObject({
  data: z.array(modelResource),
  has_more: z.boolean(),
  first_id: z.string().nullable(),
  last_id: z.string().nullable(),
});

/** The id in a path. One that no object can have is not found, like any other that does not exist. */
export function pathId(exchange: Exchange, kind: IdKind): string {
  const given = exchange.param('id');
  // The contract takes `session_` for `sesn_`.
  const id = kind === 'session' ? given.replace(/^session_/, `${ID_PREFIXES.session}_`) : given;
  if (!isId(kind, id)) throw new AppError('not-found', `${kind}.not-found`, `There is no ${kind} ${id.slice(0, 100)}.`);
  return id;
}

const modelId = (model: string | { id: string } | undefined): string | undefined =>
  typeof model === 'string' ? model : model?.id;

/** A page in the wire's older form, whose cursors are ids. */
function modelPage(all: readonly Model[], query: Query) {
  const place = (name: string): number | undefined => {
    const id = query.one(name);
    if (id === undefined) return undefined;
    const index = all.findIndex((model) => model.id === id);
    if (index < 0) throw new AppError('invalid', 'request.invalid-page', `query parameter "${name}" names no model`);
    return index;
  };
  const [after, before] = [place('after_id'), place('before_id')];
  const rest = all.slice(after === undefined ? 0 : after + 1, before);
  const limit = query.limit(Math.max(1, rest.length), LIMITS.modelListLimitMax);
  const data = before === undefined ? rest.slice(0, limit) : rest.slice(-limit);
  return {
    data,
    has_more: data.length < rest.length,
    first_id: data[0]?.id ?? null,
    last_id: data[data.length - 1]?.id ?? null,
  };
}

export function catalogueOperations(parts: {
  reader: CatalogueReader;
  commands: Commands;
  models: ModelCatalogue;
}): Operation[] {
  const { reader, commands, models } = parts;
  const list = ['limit', 'page', 'include_archived'];
  return [
    operation({
      method: 'POST',
      path: '/v1/agents',
      id: 'createAgent',
      summary: 'Create an agent, version 1.',
      answer: agentResource,
      body: createAgentBody,
      handle: async (exchange) => {
        await models.require(modelId(exchange.body.model));
        return commands.send('agent', newId('agent'), 'create', exchange.command(exchange.body, exchange.idempotency));
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/agents',
      id: 'listAgents',
      summary: 'List agents, newest first.',
      answer: pageOf(agentResource),
      query: [...list, 'created_at[gte]', 'created_at[lte]'],
      handle: (exchange) => reader.agents(exchange.principal.workspaceId, exchange.query),
    }),
    operation({
      method: 'GET',
      path: '/v1/agents/:id',
      id: 'retrieveAgent',
      summary: 'An agent, newest or by version.',
      answer: agentResource,
      query: ['version'],
      handle: (exchange) =>
        reader.agent(
          exchange.principal.workspaceId,
          pathId(exchange, 'agent'),
          exchange.query.integer('version', { min: 1, max: 2 ** 31 - 1 }),
        ),
    }),
    operation({
      method: 'POST',
      path: '/v1/agents/:id',
      id: 'updateAgent',
      summary: 'Change an agent; makes a new version.',
      answer: agentResource,
      body: updateAgentBody,
      handle: async (exchange) => {
        await models.require(modelId(exchange.body.model));
        return commands.send(
          'agent',
          pathId(exchange, 'agent'),
          'update',
          exchange.command(exchange.body, exchange.idempotency),
        );
      },
    }),
    operation({
      method: 'POST',
      path: '/v1/agents/:id/archive',
      id: 'archiveAgent',
      summary: 'Archive an agent; its sessions go on.',
      answer: agentResource,
      handle: (exchange) =>
        commands.send('agent', pathId(exchange, 'agent'), 'archive', exchange.command({}, exchange.idempotency)),
    }),
    operation({
      method: 'GET',
      path: '/v1/agents/:id/versions',
      id: 'listAgentVersions',
      summary: 'Versions of an agent, newest first.',
      answer: pageOf(agentResource),
      query: ['limit', 'page'],
      handle: (exchange) =>
        reader.agentVersions(exchange.principal.workspaceId, pathId(exchange, 'agent'), exchange.query),
    }),
    operation({
      method: 'POST',
      path: '/v1/environments',
      id: 'createEnvironment',
      summary: 'Create an environment.',
      answer: environmentResource,
      body: createEnvironmentBody,
      handle: (exchange) =>
        commands.send(
          'environment',
          newId('environment'),
          'create',
          exchange.command(exchange.body, exchange.idempotency),
        ),
    }),
    operation({
      method: 'GET',
      path: '/v1/environments',
      id: 'listEnvironments',
      summary: 'List environments, newest first.',
      answer: pageOf(environmentResource),
      query: list,
      handle: (exchange) => reader.environments(exchange.principal.workspaceId, exchange.query),
    }),
    operation({
      method: 'GET',
      path: '/v1/environments/:id',
      id: 'retrieveEnvironment',
      summary: 'An environment.',
      answer: environmentResource,
      handle: (exchange) => reader.environment(exchange.principal.workspaceId, pathId(exchange, 'environment')),
    }),
    operation({
      method: 'POST',
      path: '/v1/environments/:id',
      id: 'updateEnvironment',
      summary: 'Change an environment; sandboxes started later have it.',
      answer: environmentResource,
      body: updateEnvironmentBody,
      handle: (exchange) =>
        commands.send(
          'environment',
          pathId(exchange, 'environment'),
          'update',
          exchange.command(exchange.body, exchange.idempotency),
        ),
    }),
    operation({
      method: 'POST',
      path: '/v1/environments/:id/archive',
      id: 'archiveEnvironment',
      summary: 'Archive an environment.',
      answer: environmentResource,
      handle: (exchange) =>
        commands.send(
          'environment',
          pathId(exchange, 'environment'),
          'archive',
          exchange.command({}, exchange.idempotency),
        ),
    }),
    operation({
      method: 'DELETE',
      path: '/v1/environments/:id',
      id: 'deleteEnvironment',
      summary: 'Delete an environment that no open session uses.',
      answer: deleted('environment_deleted'),
      handle: (exchange) =>
        commands.send(
          'environment',
          pathId(exchange, 'environment'),
          'delete',
          exchange.command({}, exchange.idempotency),
        ),
    }),
    operation({
      method: 'GET',
      path: '/v1/models',
      id: 'listModels',
      summary: 'Models that the gateway offers; without a limit, all of them.',
      answer: modelList,
      query: ['limit', 'after_id', 'before_id', 'lifecycle'],
      handle: async ({ query }) => {
        const stages = query.choices('lifecycle', ['active', 'deprecated', 'retired']);
        const all = stages.length === 0 || stages.includes('active') ? await models.list() : [];
        return modelPage(all, query);
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/models/:id',
      id: 'retrieveModel',
      summary: 'One model.',
      answer: modelResource,
      handle: async (exchange) => {
        const id = exchange.param('id');
        const found = (await models.list()).find((model) => model.id === id);
        if (found === undefined)
          throw new AppError('not-found', 'model.not-found', `There is no model ${id.slice(0, 100)}.`);
        return found;
      },
    }),
  ];
}
