import {
  type Agent,
  type Aggregate,
  AppError,
  type Command,
  type CreateAgentBody,
  type CreateEnvironmentBody,
  type Environment,
  type UpdateAgentBody,
  type UpdateEnvironmentBody,
} from '@holdfast/contracts';
import type { CompanionStatement, EventLog } from '@holdfast/event-store';
import { appendObject } from '../commands/append-object.ts';
import type { Idempotent } from '../commands/idempotent.ts';
import { createAgent, type EnabledHarnesses, updateAgent } from './agent.decider.ts';
import type { Catalogue } from './catalogue.ts';
import { createEnvironment, updateEnvironment } from './environment.decider.ts';

const ATTEMPTS = 5;

/**
 * Changes of agents and environments. Each commits its rows, its audit event and its idempotency row together; a repeat
 * gets the stored event's object.
 */
export class CatalogueCommands {
  readonly #log: EventLog;
  readonly #catalogue: Catalogue;
  readonly #idempotent: Idempotent;
  readonly #harnesses: EnabledHarnesses;

  constructor(log: EventLog, catalogue: Catalogue, idempotent: Idempotent, harnesses: EnabledHarnesses) {
    this.#harnesses = harnesses;
    this.#log = log;
    this.#catalogue = catalogue;
    this.#idempotent = idempotent;
  }

  createAgent(id: string, command: Command<CreateAgentBody>): Promise<Agent> {
    return this.#idempotent.run(command, storedAgent, async (claim) => {
      const agent = createAgent(id, command.body, new Date().toISOString(), this.#harnesses);
      await this.#store(command, 'agent', id, 'agent.created', { agent }, [
        insertAgent(command.workspaceId, agent),
        insertVersion(command.workspaceId, agent),
        ...claim,
      ]);
      return agent;
    });
  }

  updateAgent(id: string, command: Command<UpdateAgentBody>): Promise<Agent> {
    return this.#idempotent.run(command, storedAgent, (claim) =>
      this.#retryRaces(async () => {
        const agent = await this.#catalogue.agent(command.workspaceId, id);
        const next = updateAgent(agent, command.body, new Date().toISOString(), this.#harnesses);
        if (next === agent) return agent;
        await this.#store(command, 'agent', id, 'agent.updated', { agent: next }, [
          replaceAgent(next, agent.version),
          insertVersion(command.workspaceId, next),
          ...claim,
        ]);
        return next;
      }),
    );
  }

  archiveAgent(id: string, command: Command): Promise<Agent> {
    return this.#idempotent.run(command, storedAgent, (claim) =>
      this.#retryRaces(async () => {
        const agent = await this.#catalogue.agent(command.workspaceId, id);
        if (agent.archived_at !== null) return agent;
        const at = new Date().toISOString();
        const archived: Agent = { ...agent, archived_at: at, updated_at: at };
        await this.#store(command, 'agent', id, 'agent.archived', { agent: archived }, [
          replaceAgent(archived, agent.version),
          ...claim,
        ]);
        return archived;
      }),
    );
  }

  createEnvironment(id: string, command: Command<CreateEnvironmentBody>): Promise<Environment> {
    return this.#idempotent.run(command, storedEnvironment, (claim) =>
      namedOnce(command.body.name, async () => {
        const environment = createEnvironment(id, command.body, new Date().toISOString());
        await this.#store(command, 'environment', id, 'environment.created', { environment }, [
          insertEnvironment(command.workspaceId, environment),
          ...claim,
        ]);
        return environment;
      }),
    );
  }

  updateEnvironment(id: string, command: Command<UpdateEnvironmentBody>): Promise<Environment> {
    return this.#idempotent.run(command, storedEnvironment, (claim) =>
      namedOnce(command.body.name ?? '', () =>
        this.#retryRaces(async () => {
          const environment = await this.#catalogue.environment(command.workspaceId, id);
          const next = updateEnvironment(environment, command.body, new Date().toISOString());
          if (next === environment) return environment;
          await this.#store(command, 'environment', id, 'environment.updated', { environment: next }, [
            replaceEnvironment(next, environment),
            ...claim,
          ]);
          return next;
        }),
      ),
    );
  }

  archiveEnvironment(id: string, command: Command): Promise<Environment> {
    return this.#idempotent.run(command, storedEnvironment, (claim) =>
      this.#retryRaces(async () => {
        const environment = await this.#catalogue.environment(command.workspaceId, id);
        if (environment.archived_at !== null) return environment;
        const at = new Date().toISOString();
        const archived: Environment = { ...environment, archived_at: at, updated_at: at };
        await this.#store(command, 'environment', id, 'environment.archived', { environment: archived }, [
          replaceEnvironment(archived, environment),
          ...claim,
        ]);
        return archived;
      }),
    );
  }

  /** Refused while a session that is not archived uses it. */
  deleteEnvironment(id: string, command: Command): Promise<{ id: string; type: 'environment_deleted' }> {
    const reply = { id, type: 'environment_deleted' } as const;
    return this.#idempotent.run(
      command,
      () => reply,
      async (claim) => {
        await this.#catalogue.environment(command.workspaceId, id);
        const remove: CompanionStatement = {
          text: `delete from environments e where id = $1 and workspace_id = $2
                 and not exists (select 1 from sessions s where s.environment_id = e.id and s.archived_at is null)`,
          values: [id, command.workspaceId],
          rows: 1,
        };
        try {
          await this.#store(command, 'environment', id, 'environment.deleted', {}, [remove, ...claim]);
        } catch (error) {
          if (!isRowRace(error)) throw error;
          throw new AppError(
            'rejected',
            'environment.in-use',
            `Sessions use the environment ${id}; archive or delete them first.`,
          );
        }
        return reply;
      },
    );
  }

  #store(
    command: Command,
    aggregate: Aggregate,
    id: string,
    type: string,
    data: object,
    statements: readonly CompanionStatement[],
  ): Promise<void> {
    return appendObject(this.#log, command, { aggregate, id }, { type, data }, statements);
  }

  /** Two changes of one object at once: the loser reads again and decides again. */
  async #retryRaces<T>(change: () => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await change();
      } catch (error) {
        if (!isRowRace(error) || attempt === ATTEMPTS) throw error;
      }
    }
  }
}

function isRowRace(error: unknown): boolean {
  return (
    error instanceof AppError && error.code === 'log.statement-conflict' && error.details.constraint === 'row-count'
  );
}

async function namedOnce<T>(name: string, change: () => Promise<T>): Promise<T> {
  try {
    return await change();
  } catch (error) {
    if (error instanceof AppError && error.details.constraint === 'environments_name') {
      throw new AppError('rejected', 'environment.name-taken', `An environment named "${name}" exists already.`);
    }
    throw error;
  }
}

function storedAgent(events: readonly { data: object }[]): Agent {
  return (events[0]?.data as { agent: Agent }).agent;
}
function storedEnvironment(events: readonly { data: object }[]): Environment {
  return (events[0]?.data as { environment: Environment }).environment;
}

function insertAgent(workspaceId: string, agent: Agent): CompanionStatement {
  return {
    text: 'insert into agents (id, workspace_id, resource, version, created_at) values ($1, $2, $3, $4, $5)',
    values: [agent.id, workspaceId, JSON.stringify(agent), agent.version, agent.created_at],
  };
}
function insertVersion(workspaceId: string, agent: Agent): CompanionStatement {
  return {
    text: 'insert into agent_versions (agent_id, version, workspace_id, resource, created_at) values ($1, $2, $3, $4, $5)',
    values: [agent.id, agent.version, workspaceId, JSON.stringify(agent), agent.updated_at],
  };
}
function replaceAgent(agent: Agent, from: number): CompanionStatement {
  return {
    text: 'update agents set resource = $2, version = $3, archived_at = $4 where id = $1 and version = $5 and archived_at is null',
    values: [agent.id, JSON.stringify(agent), agent.version, agent.archived_at, from],
    rows: 1,
  };
}
function insertEnvironment(workspaceId: string, environment: Environment): CompanionStatement {
  return {
    text: 'insert into environments (id, workspace_id, name, resource, created_at) values ($1, $2, $3, $4, $5)',
    values: [environment.id, workspaceId, environment.name, JSON.stringify(environment), environment.created_at],
  };
}
function replaceEnvironment(environment: Environment, before: Environment): CompanionStatement {
  return {
    text: 'update environments set resource = $2, name = $3, archived_at = $4 where id = $1 and resource = $5::jsonb',
    values: [
      environment.id,
      JSON.stringify(environment),
      environment.name,
      environment.archived_at,
      JSON.stringify(before),
    ],
    rows: 1,
  };
}
